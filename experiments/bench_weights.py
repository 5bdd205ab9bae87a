"""Perplexity of a language model that lost single weights, the same fraction of every matrix.

    python -m experiments.bench_weights --model ../shared/models/stories260K \\
        --tokens ../shared/models/stories260K/tinystories_tokens.npz \\
        --out experiments/results/weights_stories260k

Statistics come from the dense model on the calibration tokens; perplexity is of the next token over
each row of evaluation tokens, the mean over all predicted tokens. Output head and embeddings stay.
What is pruned away is zero, nothing is tuned.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from prune_env.experiments.benches.harness import BenchFlags, bench, pivoted
from prune_env.experiments.config.run import option
from prune_env.experiments.report.publishing import note

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prune_env.calibration.statistics import Calibration
    from prune_env.quality.batches import Batch
    from prune_env.repair.ladder import Ladders
    from prune_env.repair.overlays import Overlay


@dataclass(frozen=True)
class WeightsConfig(BenchFlags):
    """Prune every matrix alike by each method, at each sparsity, and measure."""

    model: str = option("../shared/models/stories260K", "Hugging Face folder of a causal model")
    tokens: str = option(
        "../shared/models/stories260K/tinystories_tokens.npz",
        "npz with rows of token ids, 'calibration' and 'evaluation'",
    )
    sparsities: tuple[str, ...] = option(
        ("0.2", "0.3", "0.4", "0.5"), "fractions of weights removed"
    )
    patterns: tuple[str, ...] = option(("2:4",), "N:M patterns measured too")
    calibration_rows: int = option(0, "calibration rows used; 0: all")
    evaluation_rows: int = option(0, "evaluation rows used; 0: all")
    batch_size: int = option(8, "rows run together")


@dataclass(frozen=True)
class Method:
    """A published way to prune weights: what goes first, among what, and what is done about it."""

    name: str
    kind: str
    criterion: str
    overlay: str


METHODS = (
    Method("magnitude", "unstructured", "l1", "none"),
    Method("Wanda", "per_row", "wanda", "none"),
    Method("SparseGPT", "unstructured", "sparsegpt", "sweep"),
    Method("Wanda, least squares", "per_row", "wanda", "least squares"),
    Method("SparseGPT, least squares", "unstructured", "sparsegpt", "least squares"),
    Method("OBS, least squares", "unstructured", "obs", "least squares"),
    Method("OBS per row, least squares", "per_row", "obs", "least squares"),
)
"""At every sparsity; under an N:M pattern each criterion and overlay once."""


def measure(config: WeightsConfig) -> dict[str, Any]:
    """Perplexity of the dense network and of every method at every sparsity."""
    import math

    from prune_env.calibration.statistics import calibrate
    from prune_env.quality.evaluators import Evaluator
    from prune_env.structure.weights import weight_groups

    dense, calibration, evaluation = load(config)
    evaluate = Evaluator.of(dense, evaluation)
    live = [group for group in weight_groups(dense) if not group.frozen]
    statistics = calibrate(dense, calibration, live, positions=None)
    figures: dict[str, Any] = {
        "dense_perplexity": math.exp(evaluate(dense).loss),
        "matrices": len(live),
        "predicted_tokens": evaluate.samples,
    }
    note(f"dense {figures['dense_perplexity']:.4f}")
    rows = []
    for method, sparsities in _plan_of(config):
        for sparsity, removed, model, seconds in pruned(dense, statistics, method, sparsities):
            metrics = evaluate(model)
            perplexity = math.exp(metrics.loss)
            row = {**vars(method), "sparsity": sparsity, "removed": removed}
            rows.append({**row, "perplexity": perplexity, "kl": metrics.divergence})
            rows[-1]["seconds"] = round(seconds, 2)
            note(f"{method.name} ({method.kind}) {removed:.1%}: {perplexity:.3f}, {seconds:.1f} s")
    return {**figures, "rows": rows}


def _plan_of(config: WeightsConfig) -> Iterator[tuple[Method, tuple[float, ...]]]:
    """Every method with its sparsities; an N:M pattern has one."""
    for method in METHODS:
        yield method, tuple(map(float, config.sparsities))
    for pattern in config.patterns:
        kept, of = map(int, pattern.split(":"))
        for method in {(m.criterion, m.overlay): m for m in reversed(METHODS)}.values():
            yield replace(method, kind=pattern), (1 - kept / of,)


def load(config: WeightsConfig) -> tuple[nn.Module, list[Batch], list[Batch]]:
    """The dense network, calibration batches, evaluation batches."""
    import numpy as np

    from prune_env.experiments.networks.pretrained import load_pretrained

    dense = load_pretrained(config.model)
    with np.load(config.tokens) as tokens:
        calibration = tokens["calibration"][: config.calibration_rows or None]
        evaluation = tokens["evaluation"][: config.evaluation_rows or None]
    return dense, _batches(calibration, config), _batches(evaluation, config)


def _batches(ids: Any, config: WeightsConfig) -> list[Batch]:
    """Rows of token ids and, as targets, what follows each token."""
    import torch

    from prune_env.quality.batches import Batch

    rows_BT: Tensor = torch.as_tensor(ids).long()
    after_BT = torch.nn.functional.pad(rows_BT[:, 1:], (0, 1), value=-100)
    parts = zip(rows_BT.split(config.batch_size), after_BT.split(config.batch_size), strict=True)
    return [Batch({"input_ids": x, "use_cache": False}, y) for x, y in parts]


def pruned(
    dense: nn.Module, statistics: Calibration, method: Method, sparsities: Sequence[float]
) -> Iterator[tuple[float, float, nn.Module, float]]:
    """Sparsity asked for and reached, the network, and seconds it took (scoring in the first)."""
    from prune_env.criteria.scorers import Evidence, score_groups
    from prune_env.plan.cut import Candidates
    from prune_env.repair.ladder import Ladders
    from prune_env.structure.weights import weight_groups

    start = time.perf_counter()
    groups = weight_groups(dense, method.kind, levels_per_group=1000)
    groups = tuple(group for group in groups if not group.frozen)
    scores = score_groups(method.criterion, dense, groups, Evidence(statistics, dict))
    orders = {group.name: group.pattern.order(scores[group.name]) for group in groups}
    ladders = Ladders.of(dense, groups, orders, statistics)
    candidates, overlay = Candidates(dense, groups), _overlays()[method.overlay]
    for sparsity in sparsities:
        kept = {g.name: g.nearest_level((1 - sparsity) * g.units) for g in groups}
        units = {name: orders[name][:count] for name, count in kept.items()}
        model = candidates.build(units, overlay(ladders, kept))
        removed = 1 - sum(kept.values()) / sum(group.units for group in groups)
        yield sparsity, removed, model, time.perf_counter() - start
        start = time.perf_counter()


def _overlays() -> Mapping[str, Overlay]:
    from prune_env.repair.overlays import least_squares, no_overlay

    def sweep(ladders: Ladders, kept: Mapping[str, int]) -> dict[str, Tensor]:
        return least_squares(_swept(ladders), kept)

    return {"none": no_overlay, "sweep": sweep, "least squares": least_squares}


def _swept(ladders: Ladders) -> Ladders:
    """The same ladders, solved by one sweep over the columns as SparseGPT does."""
    from prune_env.repair.masked_squares import MaskedSolver, column_sweep

    solvers = {
        name: tuple(
            replace(solver, update=column_sweep) if isinstance(solver, MaskedSolver) else solver
            for solver in found
        )
        for name, found in ladders.solvers.items()
    }
    return replace(ladders, solvers=solvers, _solved={})


def page(figures: Mapping[str, Any]) -> str:
    """The tables in Markdown: a line per method, a column per sparsity or pattern."""
    rows, settings = figures["rows"], figures["settings"]
    patterns = settings["patterns"]
    uniform = [row for row in rows if row["kind"] not in patterns]
    fixed = [row for row in rows if row["kind"] in patterns]
    text = (
        f"# Single weights removed from {settings['model'].rstrip('/').rpartition('/')[2]}, no "
        f"fine-tuning\n\nPerplexity on {figures['predicted_tokens']:,} predicted tokens; dense "
        f"{figures['dense_perplexity']:.4f}. All {figures['matrices']} matrices lose the same "
        "fraction; output head and embeddings stay. A mask alone saves no time.\n\n"
    )
    name, kind, overlay = (itemgetter(field) for field in ("name", "kind", "overlay"))
    lines = {"method": name, "goes first among": kind}
    text += pivoted(uniform, lines, lambda row: f"{row['sparsity']:.0%}", _perplexity)
    if fixed:
        text += "\n" + pivoted(fixed, {"method": name, "repair": overlay}, kind, _perplexity)
    return text


def _perplexity(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{rows[-1]['perplexity']:.3f}"


main = bench("bench_weights", WeightsConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
