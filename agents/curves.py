"""What TensorBoard is told about a search: figures by tag, and which charts show which tags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from prune_env import PruningTask
from prune_env.mdp.rewards import Outcome

Charts = dict[str, dict[str, list[Any]]]


def scalars(outcome: Outcome) -> dict[str, float]:
    """The curves of one candidate, by tag."""
    return {
        "quality/accuracy": outcome.metrics.accuracy,
        "quality/kl": outcome.metrics.kl,
        "quality/loss": outcome.metrics.loss,
        "cost/flops_ratio": outcome.flops_ratio,
        "cost/params_ratio": outcome.params_ratio,
        "reward/total": outcome.reward,
        **{f"reward/{plain_tag(name)}": value for name, value in outcome.terms.items()},
    }


def best(outcome: Outcome) -> dict[str, float]:
    """The curves of the best candidate so far, by tag."""
    return {
        "best/reward": outcome.reward,
        "best/accuracy": outcome.metrics.accuracy,
        "best/kl": outcome.metrics.kl,
    }


def probe(outcome: Outcome) -> dict[str, float]:
    """The curves of an outcome that is no candidate, by tag."""
    return {
        "probe/accuracy": outcome.metrics.accuracy,
        "probe/kl": outcome.metrics.kl,
        "probe/loss": outcome.metrics.loss,
        "probe/flops_ratio": outcome.flops_ratio,
        "probe/params_ratio": outcome.params_ratio,
        "probe/samples_share": outcome.metrics.share,
    }


def final(outcome: Outcome) -> dict[str, float]:
    """The figures of the best candidate for the table of hyperparameters, by tag."""
    shown = ("quality", "cost", "best")  # terms of the reward would pass for costs there
    values = scalars(outcome) | best(outcome)
    parts = {tag: tag.split("/") for tag in values}
    return {f"final/{name}": values[tag] for tag, (kind, name) in parts.items() if kind in shown}


def sparsity_tags(task: PruningTask) -> list[str]:
    """A tag per group; the number keeps TensorBoard's alphabet in layer order."""
    return [f"sparsity/{n:03d}_{plain_tag(group.name)}" for n, group in enumerate(task.groups)]


def charts(terms: Iterable[str], sparsities: Sequence[str]) -> Charts:
    """Categories of charts of the custom scalars tab."""
    rewards = ["reward/total", *(f"reward/{plain_tag(term)}" for term in sorted(terms))]
    return {
        "search": {
            "best reward": _lines("best/reward"),
            "best KL": _lines("best/kl"),
        },
        "evaluations": {
            "accuracy": _lines("quality/accuracy"),
            "KL to the dense network": _lines("quality/kl"),
            "reward, term by term": _lines(*rewards),
            "cost left": _lines("cost/flops_ratio", "cost/params_ratio"),
        },
        "plan": {"sparsity per group": _lines(*sparsities)},
    }


def probe_charts() -> Charts:
    """One category more, for searches that measure what is no candidate."""
    return {
        "probes": {
            "accuracy": _lines("probe/accuracy"),
            "KL to the dense network": _lines("probe/kl"),
            "cost left": _lines("probe/flops_ratio", "probe/params_ratio"),
            "share of the samples": _lines("probe/samples_share"),
        }
    }


def _lines(*tags: str) -> list[Any]:
    """One chart; tags are regular expressions there."""
    return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]


def plain_tag(name: str) -> str:
    """`name` without what a tag may not hold."""
    return re.sub(r"[^\w.-]", "_", name)
