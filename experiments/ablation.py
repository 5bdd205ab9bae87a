"""What each part of an agent is worth: every one is taken away in turn.

    python -m experiments.ablation --task resnet20_cifar10 --budgets 0.5 --agent ppo \\
        --evaluations 200 --seeds 3 --out experiments/results/ablation_resnet20
    python -m experiments.ablation --task stories260K --budgets 0.4 --agent ppo \\
        --beside experiments/results/ablation_resnet20 --out experiments/results/ablation

Takes the options of `experiments.compare` and keeps its searches in the same folders: a killed one
goes on, and those of the whole agent serve both. `--beside` puts the tables of earlier calls on the
same page.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prune_env.experiments.config.cli import config_error, invoked
from prune_env.experiments.config.compare import CompareConfig
from prune_env.experiments.config.run import main_guard, option, parse
from prune_env.experiments.report.publishing import command_of, markdown, publish
from prune_env.experiments.sweeps.variants import HERE, Variant, variants

Entry = Mapping[str, Any]
"""A table: one task under one budget, JSON-able."""

PARTS = (4, 2, 1)
"""The KL is told after a quarter, half and all of the evaluations."""
SHAPES = {
    "ppo": ("ppo_plan", "plan instead of walk"),
    "ppo_plan": ("ppo", "walk instead of plan"),
}
"""Agent -> the agent that decides in the other way, and what that row is called."""
SAID = {
    "evolution": "Evolution from the best plan of the same prior; no surrogate.",
    "uniform": "The uniform plan.",
}
"""What searchers are that are shown beside the agent."""
ABOUT = (
    "Every row may spend the same evaluations, and each part is removed alone. KL to the dense "
    "network of the best plan so far, by the row's own reward, on the reward samples: mean over "
    "seeds; in brackets the interquartile mean where it differs, and its 95 % bootstrap interval, "
    "which is too narrow with few seeds. Quality is of the best plan at the end, before "
    "fine-tuning. P: probability that a seed of the whole agent ends with a lower KL than a seed "
    "of the row. Time: of one thread of the processor, median.\n"
)


@dataclass(frozen=True)
class AblationConfig(CompareConfig):
    """Every part of an agent taken away in turn, all charged the same evaluations."""

    agent: str = option("ppo", "agent of SB3 that is taken apart", identity=False)
    searchers: tuple[str, ...] = option(
        ("evolution", "uniform"), "shown beside it, comma separated", identity=False
    )
    beside: tuple[str, ...] = option(
        (), "OUT of earlier calls, whose tables come first", identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_policy:
            raise config_error("an ablation starts every row afresh. Leave out --init-policy.")


@main_guard
def main(argv: Sequence[str]) -> int:
    """Run what is missing, print the page and, last, the JSON line."""
    command = command_of("ablation", argv)
    argv = [re.sub("^--budget(?==|$)", "--budgets", word) for word in argv]
    config = parse(AblationConfig, argv, prog=invoked("ablation"))
    earlier = [entry for out in config.beside for entry in _read(Path(f"{out}.json"))]
    entries = [*earlier, *measure(config, command)]
    publish(config.out, command, page(entries), {"ablations": entries})
    return 0


def rows_of(config: AblationConfig) -> dict[str, Variant]:
    """Searcher -> its row: the whole agent, it without each part, what it is compared with.

    Raises:
        ConfigError: there is no such agent.
    """
    from prune_env.agents.sb3 import AGENTS
    from prune_env.errors import look_up
    from prune_env.mdp.env import PruneEnv

    agent = config.agent
    walks = look_up("agent", agent, AGENTS).env is PruneEnv
    rows = {agent: Variant(agent, "The whole agent.")}
    for key, variant in variants().items():
        if walks or not variant.walks:
            rows[f"{HERE}:{agent}_{key}"] = variant
    if agent in SHAPES:
        other, name = SHAPES[agent]
        rows[other] = Variant(name, f"The whole agent {other}.")
    rows["screened"] = Variant(
        "surrogate without policy",
        "The same surrogate screens plans beside the best ones: trades and random offsets.",
    )
    for name in config.searchers:
        rows.setdefault(name, Variant(name, SAID.get(name, "")))
    return rows


def measure(config: AblationConfig, command: str) -> list[Entry]:
    """A table for every budget; searches that are finished are not run again.

    Raises:
        PruneEnvError: see `experiments.searching.compare`.
    """
    from prune_env.experiments.sweeps.searching import compare

    rows = rows_of(config)
    values = {entry.name: getattr(config, entry.name) for entry in fields(CompareConfig)}
    results = compare(CompareConfig(**{**values, "searchers": tuple(rows), "out": ""}), command)
    facts = {"command": command, "agent": config.agent, "machine": results["machine"]}
    facts |= {"settings": config.settings}
    kept = ("title", "quality", "dense", "dense_held_out", "units", "on", "budget", "evaluations",
            "refused")  # fmt: skip
    return [
        {**facts, **{key: cell[key] for key in kept}, "rows": _figures(cell, config.agent, rows)}
        for cell in results["cells"]
    ]


def _figures(
    cell: Mapping[str, Any], agent: str, rows: Mapping[str, Variant]
) -> list[dict[str, Any]]:
    """What is told of every row that could be run.

    `chance` is that a seed of the whole agent ends with a lower KL.
    """
    from prune_env.experiments.report.aggregates import improvement
    from prune_env.experiments.report.cells import curves_by_searcher
    from prune_env.experiments.report.summaries import spread_of

    curves, found = curves_by_searcher(cell), []
    summaries = {each["searcher"]: each for each in cell["searchers"]}
    marks = [max(1, cell["evaluations"] // part) for part in PARTS]
    ends = {name: [float(curve.kl[-1]) for curve in each] for name, each in curves.items()}
    for name, row in rows.items():
        if name not in curves:
            continue
        at = {str(mark): [float(curve.at(mark)) for curve in curves[name]] for mark in marks}
        alone = name == agent or agent not in ends
        shown = ("seeds", "evaluations", "area", "quality", "held_out", "seconds")
        found.append(
            {
                **{"searcher": name, "name": row.name, "said": row.said},
                "kl": {mark: asdict(spread_of(each)) for mark, each in at.items()},
                "chance": None if alone else asdict(improvement([(ends[agent], ends[name])])),
                **{key: summaries[name][key] for key in shown},
            }
        )
    return found


def _read(path: Path) -> list[Entry]:
    """The tables of an earlier call.

    Raises:
        RunError: there are none in the file.
    """
    from prune_env.errors import RunError

    try:
        entries: list[Entry] = json.loads(path.read_text(encoding="utf-8"))["ablations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"cannot read '{path}': {error!r}. Give --beside what an earlier call had as --out."
        ) from error
    return entries


def page(entries: Sequence[Entry]) -> str:
    """All tables in Markdown."""
    return f"# What each part of an agent is worth\n\n{ABOUT}{''.join(map(_section, entries))}"


def _section(entry: Entry) -> str:
    from prune_env.experiments.report.cells import title_of
    from prune_env.experiments.report.summaries import nats
    from prune_env.pipeline.formats import duration
    from prune_env.pipeline.yardstick import yardstick_of

    yardstick, rows = yardstick_of(entry), entry["rows"]
    columns: dict[str, Callable[[Any], str]] = {
        entry["agent"]: lambda row: row["name"],
        "seeds": lambda row: str(row["seeds"]),
        **{f"KL at {m}": lambda row, m=m: _cell(row["kl"][m], nats) for m in rows[0]["kl"]},  # type: ignore[misc]
        "mean KL on the way": lambda row: _cell(row["area"], nats),
        f"P({entry['agent']} lower)": lambda row: _cell(row["chance"], lambda p: f"{p:.2f}"),
        yardstick.name: lambda row: _cell(row["quality"], yardstick.show),
        f"{yardstick.name}, test": lambda row: _cell(row["held_out"], yardstick.show),
        "time": lambda row: duration(row["seconds"]),
    }
    columns = {name: show for name, show in columns.items() if any(map(show, rows))}
    table = markdown(list(columns), [[show(row) for show in columns.values()] for row in rows])
    said = [f"{row['name']}: {row['said']}" for row in rows if row["said"]]
    said += [f"not run: {name} ({why})" for name, why in entry["refused"].items()]
    dense = {"reward samples": entry["dense"], "test": entry["dense_held_out"]}
    said += [
        f"{yardstick.name} of the dense network on {where}: {yardstick.show(value)}"
        for where, value in dense.items()
        if value is not None
    ]
    lines = "".join(f"- {line}\n" for line in said)
    return f"\n## {title_of(entry)}\n\n{table}\n{lines}\n    {entry['command']}\n"


def _cell(found: Mapping[str, float] | None, show: Callable[[Any], str]) -> str:
    """A figure; in brackets its interquartile mean where it has another, and its interval."""
    if found is None:
        return ""
    shown = {name: show(value) for name, value in found.items()}
    main = shown.get("mean") or shown["value"]
    inner = [f"IQM {shown['iqm']}"] if shown.get("iqm", main) != main else []
    inner += [f"{shown['low']} to {shown['high']}"] if shown["low"] != shown["high"] else []
    return main + (f" ({', '.join(inner)})" if inner else "")


if __name__ == "__main__":
    sys.exit(main(None))
