"""Which samples should repair a network and pay its search: what kind, how many?

    python -m experiments.bench_calibration --task resnet20_cifar10

    python -m experiments.bench_calibration --task stories260K --kinds given,own,auto \\
        --budgets 0.7,0.5,0.35 --held-out test --val-samples 73

    python -m experiments.bench_calibration --kinds auto --searchers evolution:200,surrogate:50

In every draw all kinds get the same training images in the same order. The divergence from the
dense network is measured on samples that nothing was chosen on, for the uniform plan and for
the best plan of every search, applied as they are delivered. A ratio is to the first kind, or to
the uniform plan, draw by draw, with a 95 % interval over the draws.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from prune_env.experiments.benches.harness import BenchFlags, bench, pivoted
from prune_env.experiments.config.cli import config_error
from prune_env.experiments.config.options import AT_LEAST_1, option, require
from prune_env.experiments.report.publishing import note

STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Draws -> quantile of Student's t that leaves 2.5 % to either side."""


@dataclass(frozen=True)
class CalibrationConfig(BenchFlags):
    """Kinds of samples of one network, at several budgets, over several draws."""

    task: str = option("resnet20_cifar10", "project, by name")
    kinds: tuple[str, ...] = option(
        ("plain:500", "half:500", "augmented:500", "plain:2000", "half:2000"),
        "kind:number of calibration samples, comma separated, the number being the project's own "
        "if it is not said; the first is compared with",
    )
    budgets: tuple[float, ...] = option((0.5, 0.4, 0.3), "fractions of the MACs that may remain")
    draws: int = option(5, "of the samples and of the search")
    searchers: tuple[str, ...] = option(
        ("screened",), "name, or name:evaluations, of those whose best plans are measured too"
    )
    evaluations: int = option(30, "of every search that does not say it")
    reward_samples: int = option(1000, "that plans are measured on, of the same kind")
    fresh_samples: int = option(0, "further ones, of the same kind, for searchers that glimpse")
    held_out: str = option("val", "part that delivers the verdict: val or test", added=True)
    val_samples: int = option(2500, "images or rows of it")
    processes: int = option(1, "draws and kinds at a time, one thread each", identity=False)
    runs: Path = option(Path("runs/calibration"), "what is finished is kept there")  # noqa: RUF009

    def __post_init__(self) -> None:
        names = ("draws", "processes", "evaluations", "reward_samples", "val_samples")
        require(self, dict.fromkeys(names, AT_LEAST_1))
        require(self, {"held_out": (lambda part: part in ("val", "test"), "val or test")})
        for kind in self.kinds:
            if not kind or ":" in numbered(kind)[0]:
                raise config_error(
                    f"--kinds holds '{kind}'; give a kind, or kind:samples, as in 'half:500'."
                )


def numbered(text: str) -> tuple[str, int | None]:
    """`name:number` in two."""
    name, _, number = text.rpartition(":")
    return (name, int(number)) if name and number.isdigit() else (text, None)


def measure(config: CalibrationConfig) -> dict[str, Any]:
    """A row for every draw, kind, budget and plan."""
    from prune_env.experiments.sweeps.parallel import mapped

    cells = [(draw, kind) for draw in range(config.draws) for kind in config.kinds]
    found = mapped(partial(rows_of, config), cells, config.processes)
    return {"rows": [row for rows in found for row in rows]}


def rows_of(config: CalibrationConfig, cell: tuple[int, str]) -> list[dict[str, Any]]:
    """Of one draw and kind; read where they are finished."""
    draw, kind = cell
    from prune_env.experiments.networks.presets import open_named
    from prune_env.fingerprint import identity_of
    from prune_env.mdp.candidates import CandidateEvaluator
    from prune_env.mdp.task import PruningTask
    from prune_env.pipeline.once import once
    from prune_env.quality.batches import take_batches
    from prune_env.quality.evaluators import Evaluator
    from prune_env.search.searchers import run_search

    name, count = numbered(kind)
    made_of = identity_of(
        task=config.task, draw=draw, kind=kind, budgets=config.budgets,
        searchers=config.searchers, evaluations=config.evaluations,
        samples=(config.reward_samples, config.fresh_samples, config.val_samples, config.held_out),
    )  # fmt: skip

    def measured() -> dict[str, Any]:
        number = {"calibration_samples": count} if count else {}
        project = open_named(
            config.task, sample_kind=name, seed=draw, budget=max(config.budgets),
            reward_samples=config.reward_samples, fresh_samples=config.fresh_samples, **number,
        )  # fmt: skip
        assert not isinstance(project, PruningTask)
        part = project.test if config.held_out == "test" else project.val
        held_out, rows = take_batches(part, config.val_samples), []
        apart = Evaluator.of(project.dense, held_out, objective=project.task.objective)
        for budget in config.budgets:
            task = project.task.at(budget)
            for plan in ("uniform", *config.searchers):
                if isinstance(task.evaluator, CandidateEvaluator):
                    task.evaluator.forget()
                start = time.process_time()
                searcher, evaluations = numbered(plan)
                result = run_search(task, searcher, evaluations or config.evaluations, draw)
                seconds, best = time.process_time() - start, result.best
                true = apart(task.network(best.kept)).divergence
                rows.append(
                    {"draw": draw, "kind": kind, "budget": budget, "plan": plan,
                     "reward": best.metrics.divergence, "held_out": true,
                     "charged": sum(o.metrics.share for o in result.history), "seconds": seconds}
                )  # fmt: skip
        return {"rows": rows}

    path = config.runs / f"{config.task}-{kind.replace(':', '-')}-{draw}" / "rows.json"
    rows: list[dict[str, Any]] = once(path, made_of, measured)["rows"]
    for row in rows:
        note(", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
    return rows


def page(figures: Mapping[str, Any]) -> str:
    """Ratios to the first kind and to the uniform plan, and the divergences behind them."""
    rows, settings = figures["rows"], figures["settings"]
    first, kinds = settings["kinds"][0], {"samples": lambda row: str(row["kind"])}
    lines = {**kinds, "plan": lambda row: str(row["plan"])}

    def column(row: Mapping[str, Any]) -> str:
        return f"{row['plan']}, {row['budget']:g}"

    def values(own: Sequence[Mapping[str, Any]]) -> str:
        true, paid = (fmean(row[name] for row in own) for name in ("held_out", "reward"))
        return f"{true:.4f} ({paid / true - 1:+.1%})"

    text = (
        f"# Samples that repair and pay, {settings['task']}\n\n"
        f"{settings['draws']} draws, {settings['val_samples']:,} samples of "
        f"{settings['held_out']}, reward on {settings['reward_samples']:,} (at most) of the kind "
        f"that calibrates; {settings['evaluations']} "
        "evaluations a search. Budgets are fractions of the MACs. Ratios of held-out divergences "
        "are geometric means over the draws, with 95 % intervals.\n"
    )
    if len(settings["kinds"]) > 1:
        others = [row for row in rows if row["kind"] != first]
        text += f"\nTo `{first}`, plan by plan:\n\n"
        text += pivoted(others, kinds, column, _ratios(rows, "kind", first))
    others = [row for row in rows if row["plan"] != "uniform"]
    if others:
        text += "\nTo the uniform plan, samples by samples:\n\n"
        text += pivoted(others, lines, _budget, _ratios(rows, "plan", "uniform"))
    text += "\nHeld-out divergence, mean over the draws, and how far the reward's was off:\n\n"
    text += pivoted(rows, lines, _budget, values)
    text += "\nEvaluations charged, and seconds of one processor core:\n\n"
    return text + pivoted(rows, lines, _budget, _spent)


def _spent(own: Sequence[Mapping[str, Any]]) -> str:
    charged, seconds = (fmean(row[name] for row in own) for name in ("charged", "seconds"))
    return f"{charged:.0f}, {seconds:.1f} s"


def _budget(row: Mapping[str, Any]) -> str:
    return f"{row['budget']:g}"


def _ratios(
    rows: Sequence[Mapping[str, Any]], name: str, to: str
) -> Callable[[Sequence[Mapping[str, Any]]], str]:
    """Cells of ratios to the rows whose field `name` is `to`, all else equal."""
    keys = [key for key in ("draw", "kind", "budget", "plan") if key != name]
    base = {tuple(row[key] for key in keys): row["held_out"] for row in rows if row[name] == to}

    def cell(own: Sequence[Mapping[str, Any]]) -> str:
        ratios = [row["held_out"] / base[tuple(row[key] for key in keys)] for row in own]
        middle, low, high = geometric(ratios)
        return f"{middle:.3f} ({low:.3f} to {high:.3f})" if low < high else f"{middle:.3f}"

    return cell


def geometric(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % interval; of one number, that number."""
    logs = [math.log(ratio) for ratio in ratios]
    middle, count = fmean(logs), len(logs)
    if count < 2:
        return math.exp(middle), math.exp(middle), math.exp(middle)
    reach = STUDENT.get(count, 2.0) * stdev(logs) / math.sqrt(count)
    return math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)


main = bench("bench_calibration", CalibrationConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
