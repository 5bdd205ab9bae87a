"""Perplexity of a language model that lost neurons or groups of heads, in every block alike.

    python -m experiments.bench_neurons --model ../shared/models/stories260K \\
        --tokens ../shared/models/stories260K/tinystories_tokens.npz \\
        --out experiments/results/neurons_stories260k

Statistics come from the dense model on the calibration tokens; perplexity is of the next token over
each row of evaluation tokens, the mean over all predicted tokens. Nothing is tuned.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from prune_env.experiments.bench_weights import WeightsConfig, load
from prune_env.experiments.benches.harness import BenchFlags, bench, pivoted
from prune_env.experiments.config.run import option
from prune_env.experiments.report.publishing import note

if TYPE_CHECKING:
    from prune_env.structure.groups import PrunableGroup

ORDERS = ("random", "l2", "wanda", "obs")
"""What decides which units stay."""
REPAIRS = ("none", "least_squares")
"""What is done about the others."""


@dataclass(frozen=True)
class NeuronsConfig(BenchFlags):
    """Remove the same fraction of one kind of unit from every block, repair, measure."""

    model: str = option("../shared/models/stories260K", "Hugging Face folder of a causal model")
    tokens: str = option(
        "../shared/models/stories260K/tinystories_tokens.npz",
        "npz with rows of token ids, 'calibration' and 'evaluation'",
    )
    neurons: float = option(0.3, "fraction of the MLP neurons removed")
    head_groups: int = option(1, "KV heads removed from every layer, with their query heads")
    calibration_rows: int = option(0, "calibration rows used; 0: all")
    evaluation_rows: int = option(0, "evaluation rows used; 0: all")
    batch_size: int = option(8, "rows run together")
    seed: int = option(0, "seed of the random order")


def measure(config: NeuronsConfig) -> dict[str, Any]:
    """Perplexity of the dense network and of every case, order and repair."""
    import math

    from prune_env.calibration.statistics import calibrate
    from prune_env.criteria.scorers import Evidence, score_groups
    from prune_env.plan.cut import Candidates
    from prune_env.quality.evaluators import Evaluator
    from prune_env.repair.ladder import Ladders
    from prune_env.repair.repairs import repair_named
    from prune_env.structure.discover import find_groups

    names = WeightsConfig.__dataclass_fields__
    dense, calibration, evaluation = load(
        WeightsConfig(**{key: value for key, value in asdict(config).items() if key in names})
    )
    evaluate = Evaluator.of(dense, evaluation)
    found = find_groups(dense, {"input_ids": calibration[0].inputs["input_ids"][:2]})  # type: ignore[call-overload, index]
    live = [group for group in found if not group.frozen]
    statistics = calibrate(dense, calibration, live)
    candidates = Candidates(dense, live)
    dense_loss = evaluate(dense).loss
    rows = []
    for order in ORDERS:
        scores = score_groups(order, dense, live, Evidence(statistics, dict, config.seed))
        orders = {group.name: group.pattern.order(scores[group.name]) for group in live}
        ladders = Ladders.of(dense, live, orders, statistics)
        for case, kept in _cases(live, config):
            units = {name: orders[name][:count] for name, count in kept.items()}
            for repair in REPAIRS:
                model = candidates.build(units, repair_named(repair).overlay(ladders, kept))
                metrics = evaluate(model)
                row = {"case": case, "order": order, "repair": repair, "kl": metrics.divergence}
                rows.append({**row, "perplexity": math.exp(metrics.loss)})
                note(f"{case}, {order}, {repair}: {rows[-1]['perplexity']:.3f}")
    return {
        "dense_perplexity": math.exp(dense_loss),
        "predicted_tokens": evaluate.samples,
        "groups": {group.name: group.units for group in live},
        "rows": rows,
    }


def _cases(
    live: Sequence[PrunableGroup], config: NeuronsConfig
) -> Iterator[tuple[str, dict[str, int]]]:
    """What every group keeps: units one index wide are neurons, wider ones are heads."""
    narrow = [max(axis.width for axis in group.axes) == 1 for group in live]
    neurons = {
        group.name: group.nearest_level((1 - config.neurons) * group.units) if one else group.units
        for group, one in zip(live, narrow, strict=True)
    }
    heads = {
        group.name: group.units if one else group.nearest_level(group.units - config.head_groups)
        for group, one in zip(live, narrow, strict=True)
    }
    yield f"{config.neurons:.0%} of the MLP neurons removed", neurons
    yield f"{config.head_groups} KV head(s) of every layer removed", heads


def page(figures: Mapping[str, Any]) -> str:
    """The table in Markdown: a line per order and repair, a column per case."""
    lines = {name: itemgetter(name) for name in ("order", "repair")}
    name = figures["settings"]["model"].rstrip("/").rpartition("/")[2]
    return (
        f"# Neurons and heads removed from {name}, no fine-tuning\n\nPerplexity on "
        f"{figures['predicted_tokens']:,} predicted tokens; dense "
        f"{figures['dense_perplexity']:.4f}.\n\n"
        + pivoted(
            figures["rows"], lines, itemgetter("case"), lambda own: f"{own[0]['perplexity']:.3f}"
        )
    )


main = bench("bench_neurons", NeuronsConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
