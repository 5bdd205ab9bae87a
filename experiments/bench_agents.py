"""Charged evaluations per second of every agent, and where the time of its search goes.

    python -m experiments.bench_agents --task toy --agents ppo,sac --evaluations 30
    python -m experiments.bench_agents --task resnet20_cifar10 --evaluations 60 \\
        --agents ppo,ppo_plan,sac,tqc,a2c,td3 --plain ppo --out experiments/results/agents_resnet20

Time is of the processor, since other jobs run on the machine; ratios by the clock stand beside it.
Before anything is timed, every level of the ladders is solved and every agent has searched a
little, so that no agent pays for what a process does once; and every search measures its plans
anew.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prune_env.experiments.benches.harness import BenchFlags, bench
from prune_env.experiments.config.options import TaskFlags, option
from prune_env.experiments.report.publishing import markdown, note
from prune_env.pipeline.formats import percent

EVALUATION, ENVIRONMENT, SURROGATE, AGENT = "evaluation", "environment", "surrogate", "agent"
PARTS = (EVALUATION, ENVIRONMENT, SURROGATE, AGENT)
GOALS = {"ppo": 0.7, "sac": 0.5}
"""Share of evaluation to be reached on ResNet-20, with episodes in lockstep."""
PLAIN, PLAIN_LANES = ", practice off", 8
"""What plain agents are called, and their lanes: they learn once every lane was measured, and with
as many lanes as for practice a search would end after a few updates."""
WARM_UP = 10
"""Evaluations of every agent before it is timed."""
MOST_LEVELS = 256
"""Plans that solve levels beforehand: all levels of groups that have no more."""


@dataclass(frozen=True)
class AgentsConfig(TaskFlags, BenchFlags):
    """Time the searches of agents, and split it into its parts."""

    task: str = option("digits", "task by name, or package.module:make_task")
    budget: float = option(0.5, "fraction of the dense cost that may remain")
    agents: tuple[str, ...] = option(("ppo", "ppo_plan", "sac"), "searchers, comma separated")
    plain: tuple[str, ...] = option(("ppo",), "agents also run without practice on a surrogate")
    evaluations: int = option(60, "plans that each search may measure")
    rounds: int = option(1, "searches of every agent, in turns, with seeds of their own; summed")
    seed: int = option(0, "seed of the task and of the first search")


class Split:
    """Seconds of every part by each of some clocks; what is inside another part counts there alone.

    Attributes:
        seconds: of every part, one for each clock.
    """

    def __init__(self, *clocks: Callable[[], float]) -> None:
        self.seconds = {part: [0.0] * len(clocks) for part in PARTS}
        self._clocks, self._inside = clocks, [AGENT]
        self._since = self._now()

    @contextlib.contextmanager
    def within(self, part: str) -> Iterator[None]:
        """What happens here is the part's."""
        self.count()
        self._inside.append(part)
        try:
            yield
        finally:
            self.count()
            self._inside.pop()

    def count(self) -> None:
        """Add the time since the last call to the part at hand."""
        now = self._now()
        spent = self.seconds[self._inside[-1]]
        for number, (before, after) in enumerate(zip(self._since, now, strict=True)):
            spent[number] += after - before
        self._since = now

    def _now(self) -> list[float]:
        return [clock() for clock in self._clocks]


@contextlib.contextmanager
def watched(split: Split) -> Iterator[None]:
    """Time the methods that make up the parts, from outside: agents hold no timers."""
    with contextlib.ExitStack() as stack:
        for part, owners in _methods().items():
            for owner, names in owners.items():
                for name in names:
                    method = vars(owner)[name]
                    stack.callback(setattr, owner, name, method)
                    setattr(owner, name, _timed(method, part, split))
        yield
        split.count()


def _methods() -> dict[str, dict[type, tuple[str, ...]]]:
    from prune_env import Ledger
    from prune_env.agents.payments import Practised
    from prune_env.agents.vec_env import AsVecEnv

    return {
        EVALUATION: {Ledger: ("measure", "probe", "glimpse")},
        ENVIRONMENT: {AsVecEnv: ("reset", "step_wait")},
        SURROGATE: {Practised: ("__call__", "potential")},
    }


def _timed(method: Callable[..., Any], part: str, split: Split) -> Callable[..., Any]:
    @functools.wraps(method)
    def timed(*args: Any, **keywords: Any) -> Any:
        with split.within(part):
            return method(*args, **keywords)

    return timed


def measure(config: AgentsConfig) -> dict[str, Any]:
    """A row of figures for every searcher."""
    from prune_env import Ledger

    searches, task = _searches(config), _task(config)
    _solve_levels(task)
    for search in searches.values():
        Ledger(task, min(WARM_UP, config.evaluations)).run(search, config.seed)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in searches}
    for number in range(config.rounds):
        for name, search in searches.items():
            found[name].append(_searched(task, search, config.evaluations, config.seed + number))
            note(f"round {number + 1} of {config.rounds}, {name}: {found[name][-1]}")
    rows = [_row(name, each) for name, each in found.items()]
    return {"title": task.name, "groups": task.length, "samples": _samples(task), "rows": rows}


def _searches(config: AgentsConfig) -> dict[str, Any]:
    """By the name of the row."""
    from dataclasses import replace

    from prune_env.agents.sb3 import AGENTS, COURSE, learn
    from prune_env.errors import look_up
    from prune_env.search.searchers import searcher_named

    for name in config.plain:
        look_up("agent", name, AGENTS)
    without = replace(COURSE, practice=None, lanes=PLAIN_LANES)
    plain = {name + PLAIN: functools.partial(learn, name, course=without) for name in config.plain}
    return {**{name: searcher_named(name) for name in config.agents}, **plain}


def _task(config: AgentsConfig) -> Any:
    from prune_env import PruningTask
    from prune_env.experiments.networks.presets import open_named

    opened = open_named(config.task, budget=config.budget, **config.task_options)
    return opened if isinstance(opened, PruningTask) else opened.task


def _samples(task: Any) -> int | None:
    return None if task.dense is None else task.dense.samples


def _solve_levels(task: Any) -> None:
    """Build plans until every level of every group was there once."""
    candidate = getattr(task.evaluator, "candidate", None)  # a toy has no networks
    if candidate is None:
        return
    most = min(MOST_LEVELS, max(len(group.levels) for group in task.groups))
    for number in range(most):
        share = number / max(1, most - 1)
        candidate([g.levels[round(share * (len(g.levels) - 1))] for g in task.groups])


def _searched(task: Any, search: Any, evaluations: int, seed: int) -> dict[str, Any]:
    """One search with nothing measured before: what it was charged, and seconds of its parts."""
    from prune_env import Ledger

    forget = getattr(task.evaluator, "forget", None)  # a toy's evaluation is a plain function
    if forget is not None:
        forget()
    ledger, split = Ledger(task, evaluations), Split(time.process_time, time.perf_counter)
    with watched(split):
        ledger.run(search, seed)
    plans = len({outcome.kept for outcome in ledger.history})
    return {"charged": ledger.charged, "plans": plans, "seconds": split.seconds}


def _row(name: str, searches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of a searcher's rounds together."""
    charged = sum(each["charged"] for each in searches)
    row = {"agent": name, "evaluations": charged, "plans": sum(each["plans"] for each in searches)}
    for number, clock in enumerate(("processor", "wall")):
        spent = {part: sum(each["seconds"][part][number] for each in searches) for part in PARTS}
        whole = sum(spent.values())
        share = {part: seconds / whole for part, seconds in spent.items()}
        row[clock] = {"seconds": whole, "per_second": charged / whole, "share": share}
    return {**row, "goal": GOALS.get(name)}


def page(figures: Mapping[str, Any]) -> str:
    """The figures in words and as a Markdown table."""
    settings, samples = figures["settings"], figures["samples"]
    measured = f" on {samples:,} predictions each" if samples else ""
    header = ["agent", "evaluations", "different plans", "evaluations / s", *PARTS, "goal",
              "evaluations / s by the clock", "evaluation by the clock"]  # fmt: skip
    rows = [
        [
            row["agent"], f"{row['evaluations']:g}", str(row["plans"]),
            f"{row['processor']['per_second']:.2f}",
            *(percent(row["processor"]["share"][part], 1) for part in PARTS),
            "" if row["goal"] is None else f"{percent(row['goal'], 0)} evaluation",
            f"{row['wall']['per_second']:.2f}", percent(row["wall"]["share"][EVALUATION], 1),
        ]
        for row in figures["rows"]
    ]  # fmt: skip
    return (
        f"# Time of agents, {figures['title']}, budget {settings['budget']:.0%}\n\n"
        f"{figures['groups']} groups; {settings['evaluations']} charged evaluations per search"
        f"{measured}, {settings['rounds']} search(es) of every agent, {settings['threads']} "
        "thread(s). Processor time, but for the last two columns. Evaluation: building, "
        "repairing and measuring plans. Environment: steps, observations, decoding. Surrogate: "
        "fitting and asking it, and choosing what is measured; it is the agent's. Agent: the rest, "
        "policy and training above all. Practice off: every plan is measured, in groups of "
        f"{PLAIN_LANES}. The goals are for ResNet-20. A plan asked for twice is "
        "charged twice and measured once.\n\n" + markdown(header, rows)
    )


main = bench("bench_agents", AgentsConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
