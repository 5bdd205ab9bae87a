"""What several seeds on several tasks say together (Agarwal et al. 2021, "Deep RL at the Edge").

Legend: R resamples, N seeds. A stratum is one task under one budget: seeds are drawn again inside
each of them, never across.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000

Floats = NDArray[np.float64]
Sample = Sequence[float]


@dataclass(frozen=True)
class Estimate:
    """A figure and its percentile bootstrap 95 % interval.

    With few seeds the interval is too narrow, for it knows no value that was not seen.
    """

    value: float
    low: float
    high: float


def interquartile_mean(values: Floats) -> Floats:
    """Mean over the last axis without the lowest and highest quarter."""
    cut = values.shape[-1] // 4
    inner = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut]
    result: Floats = inner.mean(axis=-1)
    return result


def mean_if_known(values: Sequence[float | None]) -> float | None:
    """The interquartile mean of the seeds' figures; None where one of them has none."""
    known = [value for value in values if value is not None]
    return float(interquartile_mean(np.array(known))) if len(known) == len(values) else None


def iqm_over(strata: Sequence[Sample], seed: int = 0) -> Estimate:
    """The interquartile mean of all values of all strata."""
    generator = np.random.default_rng(seed)
    drawn = np.concatenate([_drawn(values, generator) for values in strata], axis=1)
    together = np.concatenate([np.asarray(values, dtype=np.float64) for values in strata])
    return _estimate(float(interquartile_mean(together)), interquartile_mean(drawn))


def chance_below(one: Floats, other: Floats) -> Floats:
    """P(a value of `one` < a value of `other`), equals counted half, over the last axes."""
    left, right = one[..., :, None], other[..., None, :]
    result: Floats = ((left < right) + 0.5 * (left == right)).mean(axis=(-2, -1))
    return result


def improvement(strata: Sequence[tuple[Sample, Sample]], seed: int = 0) -> Estimate:
    """How probably a seed of the one is below a seed of the other, averaged over strata.

    Args:
        strata: the values of both, in each stratum; less is better.
        seed: of the resampling.
    """
    generator = np.random.default_rng(seed)
    found, drawn = [], []
    for one, other in strata:
        found.append(float(chance_below(np.asarray(one, float), np.asarray(other, float))))
        drawn.append(chance_below(_drawn(one, generator), _drawn(other, generator)))
    return _estimate(float(np.mean(found)), np.mean(drawn, axis=0))


def ratio_of_means(one: Sample, other: Sample, seed: int = 0) -> Estimate:
    """The interquartile mean of `one` over that of `other`; seeds of both are drawn again.

    Args:
        one: a figure of each seed.
        other: the same of something else, above 0.
        seed: of the resampling.
    """
    generator = np.random.default_rng(seed)
    means = [interquartile_mean(np.asarray(values, np.float64)) for values in (one, other)]
    drawn = [interquartile_mean(_drawn(values, generator)) for values in (one, other)]
    return _estimate(float(means[0] / means[1]), drawn[0] / drawn[1])


def _drawn(values: Sample, generator: np.random.Generator) -> Floats:
    """The seeds of a stratum drawn again with replacement, (R, N)."""
    sample = np.asarray(values, dtype=np.float64)
    result: Floats = sample[generator.integers(len(sample), size=(RESAMPLES, len(sample)))]
    return result


def _estimate(value: float, drawn_R: Floats) -> Estimate:
    low, high = np.quantile(drawn_R, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
