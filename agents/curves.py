"""What TensorBoard is told about a search: figures by tag, and which charts show which tags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from prune_env import PruningTask
from prune_env.mdp.rewards import Outcome
from prune_env.quality.evaluators import Metrics, named
from prune_env.quality.objectives import Objective

Charts = dict[str, dict[str, list[Any]]]


def _quality(objective: Objective, metrics: Metrics, category: str) -> dict[str, float]:
    """Every named figure once; the divergence by its own name."""
    values = named(objective, metrics)
    if objective.distance != "divergence":
        del values["divergence"]
    return {f"{category}/{plain_tag(name)}": value for name, value in values.items()}


def scalars(objective: Objective, outcome: Outcome) -> dict[str, float]:
    """The curves of one candidate, by tag."""
    return {
        **_quality(objective, outcome.metrics, "quality"),
        "cost/flops_ratio": outcome.flops_ratio,
        "cost/params_ratio": outcome.params_ratio,
        "reward/total": outcome.reward,
        **{f"reward/{plain_tag(name)}": value for name, value in outcome.terms.items()},
    }


def dense(objective: Objective, metrics: Metrics) -> dict[str, float]:
    """The curves of the dense network, by tag: those of a candidate that it has."""
    figure = plain_tag(objective.figure.name)
    return {
        **_quality(objective, metrics, "quality"),
        "cost/flops_ratio": 1.0,
        "cost/params_ratio": 1.0,
        f"best/{figure}": metrics.figure,
    }


def best(objective: Objective, outcome: Outcome) -> dict[str, float]:
    """The curves of the best candidate so far, by tag."""
    return {
        "best/reward": outcome.reward,
        f"best/{plain_tag(objective.figure.name)}": outcome.metrics.figure,
        f"best/{plain_tag(objective.distance)}": outcome.metrics.divergence,
    }


def probe(objective: Objective, outcome: Outcome) -> dict[str, float]:
    """The curves of an outcome that is no candidate, by tag."""
    return {
        **_quality(objective, outcome.metrics, "probe"),
        "probe/flops_ratio": outcome.flops_ratio,
        "probe/params_ratio": outcome.params_ratio,
        "probe/samples_share": outcome.metrics.share,
    }


def final(objective: Objective, outcome: Outcome) -> dict[str, float]:
    """The figures of the best candidate for the table of hyperparameters, by tag."""
    shown = ("quality", "cost", "best")  # terms of the reward would pass for costs there
    values = scalars(objective, outcome) | best(objective, outcome)
    parts = {tag: tag.split("/") for tag in values}
    return {f"final/{name}": values[tag] for tag, (kind, name) in parts.items() if kind in shown}


def sparsity_tags(task: PruningTask) -> list[str]:
    """A tag per group; the number keeps TensorBoard's alphabet in layer order."""
    return [f"sparsity/{n:03d}_{plain_tag(group.name)}" for n, group in enumerate(task.groups)]


def charts(objective: Objective, terms: Iterable[str], sparsities: Sequence[str]) -> Charts:
    """Categories of charts of the custom scalars tab."""
    rewards = ["reward/total", *(f"reward/{plain_tag(term)}" for term in sorted(terms))]
    figure, apart = objective.figure.name, objective.distance
    return {
        "search": {
            "best reward": _lines("best/reward"),
            f"best {_spoken(apart)}": _lines(f"best/{plain_tag(apart)}"),
        },
        "evaluations": {
            figure: _lines(f"quality/{plain_tag(figure)}"),
            f"{_spoken(apart)} to the dense network": _lines(f"quality/{plain_tag(apart)}"),
            "reward, term by term": _lines(*rewards),
            "cost left": _lines("cost/flops_ratio", "cost/params_ratio"),
        },
        "plan": {"sparsity per group": _lines(*sparsities)},
    }


def probe_charts(objective: Objective) -> Charts:
    """One category more, for searches that measure what is no candidate."""
    figure, apart = objective.figure.name, objective.distance
    return {
        "probes": {
            figure: _lines(f"probe/{plain_tag(figure)}"),
            f"{_spoken(apart)} to the dense network": _lines(f"probe/{plain_tag(apart)}"),
            "cost left": _lines("probe/flops_ratio", "probe/params_ratio"),
            "share of the samples": _lines("probe/samples_share"),
        }
    }


def _spoken(distance: str) -> str:
    return {"kl": "KL"}.get(distance, distance)


def _lines(*tags: str) -> list[Any]:
    """One chart; tags are regular expressions there."""
    return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]


def plain_tag(name: str) -> str:
    """`name` without what a tag may not hold."""
    return re.sub(r"[^\w.-]", "_", name)
