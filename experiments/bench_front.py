"""Budgets that nobody asked for: one search of a few budgets beside searches of each.

    python -m experiments.bench_front --task resnet20_cifar10

In every draw `surrogate` searches some budgets at once. Of what it measured it then says a plan for
each of other budgets, without measuring anything more. Beside these stand searches of each of the
other budgets, all of which together cost more. Divergences are of samples that nothing was chosen
on, from the dense network to what is delivered; ratios are to the search of that budget, draw by
draw, with 95 % intervals over the draws.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from prune_env.experiments.bench_calibration import geometric
from prune_env.experiments.benches.harness import BenchFlags, bench, pivoted
from prune_env.experiments.config.options import AT_LEAST_1, option, require
from prune_env.experiments.report.publishing import note

OWN, FRONT = "a search of its own", "the search of many"


@dataclass(frozen=True)
class FrontConfig(BenchFlags):
    """One search of many budgets beside many searches of one."""

    task: str = option("resnet20_cifar10", "project, by name")
    budgets: tuple[float, ...] = option((0.7, 0.5, 0.3), "that the search of many is told")
    others: tuple[float, ...] = option(
        (0.28, 0.36, 0.44, 0.57, 0.66), "that it is asked for afterwards"
    )
    evaluations: int = option(60, "of a search of one budget; that of many has this for each")
    draws: int = option(5, "of the samples and of the searches")
    reward_samples: int = option(1000, "that plans are measured on")
    held_out: int = option(2500, "samples of val that deliver the verdict")
    processes: int = option(1, "draws at a time, one thread each", identity=False)
    runs: Path = option(Path("runs/front"), "what is finished is kept there", identity=False)  # noqa: RUF009

    def __post_init__(self) -> None:
        names = ("evaluations", "draws", "reward_samples", "held_out", "processes")
        require(self, dict.fromkeys(names, AT_LEAST_1))


def measure(config: FrontConfig) -> dict[str, Any]:
    """Two rows for every draw and budget."""
    from prune_env.experiments.sweeps.parallel import mapped

    found = mapped(partial(rows_of, config), range(config.draws), config.processes)
    return {"rows": [row for rows in found for row in rows]}


def rows_of(config: FrontConfig, draw: int) -> list[dict[str, Any]]:
    """Of one draw; read where they are finished."""
    from prune_env import Ledger
    from prune_env.experiments.networks.presets import open_named
    from prune_env.fingerprint import identity_of, joined_identity
    from prune_env.mdp.task import PruningTask
    from prune_env.pipeline.once import once
    from prune_env.quality.batches import take_batches
    from prune_env.quality.evaluators import Evaluator
    from prune_env.search.screening import learned_front, plan_expected
    from prune_env.search.searchers import run_search

    def measured() -> dict[str, Any]:
        project = open_named(
            config.task, seed=draw, budget=max(config.budgets), reward_samples=config.reward_samples
        )
        assert not isinstance(project, PruningTask)
        task = project.task
        part = take_batches(project.val, config.held_out)
        apart = Evaluator.of(project.dense, part, objective=task.objective)
        ledger = Ledger(task, len(config.budgets) * config.evaluations)
        learned = learned_front(config.budgets, ledger, draw)
        rows = []
        for budget in config.others:
            own = run_search(task.at(budget), "surrogate", config.evaluations, draw).best.kept
            for plan, kept in ((OWN, own), (FRONT, plan_expected(learned, budget, draw))):
                divergence = apart(task.network(kept)).divergence
                rows.append({"draw": draw, "budget": budget, "plan": plan, "held_out": divergence})
                note(f"{draw} {budget:g} {plan} {divergence:.4f}")
        return {"rows": rows}

    made_of = identity_of(
        task=config.task, draw=draw, budgets=config.budgets, others=config.others,
        evaluations=config.evaluations, samples=(config.reward_samples, config.held_out),
    )  # fmt: skip
    path = config.runs / f"{config.task}-{joined_identity(made_of)}.json"
    rows: list[dict[str, Any]] = once(path, made_of, measured)["rows"]
    return rows


def page(figures: Mapping[str, Any]) -> str:
    """The ratios, and the divergences behind them."""
    rows, settings = figures["rows"], figures["settings"]
    plans = {"plan": lambda row: str(row["plan"])}
    own = {(row["draw"], row["budget"]): row["held_out"] for row in rows if row["plan"] == OWN}

    def ratio(cell: Sequence[Mapping[str, Any]]) -> str:
        middle, low, high = geometric(
            [row["held_out"] / own[row["draw"], row["budget"]] for row in cell]
        )
        return f"{middle:.3f} ({low:.3f} to {high:.3f})"

    def value(cell: Sequence[Mapping[str, Any]]) -> str:
        return f"{fmean(row['held_out'] for row in cell):.4f}"

    told = ", ".join(f"{budget:g}" for budget in settings["budgets"])
    many = [row for row in rows if row["plan"] == FRONT]
    every = geometric([row["held_out"] / own[row["draw"], row["budget"]] for row in many])
    return (
        f"# Budgets that nobody asked for, {settings['task']}\n\n"
        f"{settings['draws']} draws, {settings['held_out']:,} val samples. One search of {told} of "
        f"the MACs with {settings['evaluations']} evaluations for each; of what it measured follow "
        f"the plans of the budgets below, with no measurement more. Searches of their own have "
        f"{settings['evaluations']} evaluations each. Ratios of held-out divergences are geometric "
        f"means over the draws, with 95 % intervals; over all budgets {every[0]:.3f} "
        f"({every[1]:.3f} to {every[2]:.3f}).\n\n"
        + pivoted(many, plans, _budget, ratio)
        + "\nHeld-out divergence, mean over the draws:\n\n"
        + pivoted(rows, plans, _budget, value)
    )


def _budget(row: Mapping[str, Any]) -> str:
    return f"{row['budget']:g}"


main = bench("bench_front", FrontConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
