"""Samples of which every network is measured on a part of its own, beside a reference network.

A search that measures all its plans on the same samples finds plans that are good on these. Parts
that differ from plan to plan do not let it, but they are easier or harder; so every part is also
measured on a reference, which is known on all samples, and what is kept is the ratio.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prune_env.quality.evaluators import Evaluator, Metrics, summary
from prune_env.quality.objectives import Rows


@dataclass(frozen=True, eq=False)
class Fresh:
    """The samples, with the dense network's predictions."""

    evaluator: Evaluator

    @property
    def samples(self) -> int:
        """How many there are."""
        return self.evaluator.samples

    def part(self, key: object, samples: int) -> tuple[int, ...]:
        """Numbers of the batches, about so many samples, that belong to a key: always the same."""
        counts = self.evaluator.counts
        digest = hashlib.sha256(repr(key).encode()).digest()
        start, chosen, seen = int.from_bytes(digest[:8], "big") % len(counts), list[int](), 0
        while seen < samples and len(chosen) < len(counts):
            chosen.append((start + len(chosen)) % len(counts))
            seen += counts[chosen[-1]]
        return tuple(chosen)


def beside(
    fresh: Fresh, part: Sequence[int], rows: Sequence[Rows], reference: Sequence[Rows]
) -> Metrics:
    """What a network would measure on all samples, from a part of them.

    The divergence is that of the reference on all, times the ratio of both on the part (the ratio
    estimator of survey sampling, Cochran 1977, chapter 6; its error is that of the residuals); loss
    and figure are the reference's plus the difference on the part. A reference that does not
    diverge on the part is no yardstick: the divergence is then the part's own.

    Args:
        fresh: the samples.
        part: numbers of the batches measured.
        rows: of the network, on these.
        reference: of the reference, on all batches.
    """
    objective = fresh.evaluator.objective
    ours, whole = summary(objective, rows), summary(objective, reference)
    theirs = [reference[number] for number in part]
    there = summary(objective, theirs)
    figure = whole.figure + ours.figure - there.figure
    found = replace(
        ours,
        figure=min(1.0, max(0.0, figure)) if objective.figure.unit == "%" else figure,
        loss=whole.loss + ours.loss - there.loss,
        loss_error=_error(_joined(rows, "loss") - _joined(theirs, "loss"))
        if "loss" in rows[0]
        else 0.0,
    )
    if not there.divergence > 0:
        return found
    ratio = ours.divergence / there.divergence
    left_N = _joined(rows, "divergence") - ratio * _joined(theirs, "divergence")
    scale = whole.divergence / there.divergence
    return replace(
        found, divergence=ratio * whole.divergence, divergence_error=scale * _error(left_N)
    )


def _joined(rows: Sequence[Rows], name: str) -> Tensor:
    return torch.cat([row[name] for row in rows]).double()


def _error(value_N: Tensor) -> float:
    """Standard error of a mean."""
    count = len(value_N)
    return float(value_N.std(correction=min(1, count - 1))) / math.sqrt(count)
