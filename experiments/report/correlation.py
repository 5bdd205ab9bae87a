"""Spearman's rank correlation and a bootstrap interval of it, in numpy alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ranks(values: Floats) -> Floats:
    """Ranks from 1 along the last axis; ties share the mean of their ranks."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    result: Floats = below + (equal + 1) / 2
    return result


def spearman(x: Floats, y: Floats) -> Floats:
    """Pearson correlation of the ranks along the last axis; NaN where one side is constant."""
    a, b = (ranks(np.asarray(values)) for values in (x, y))
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    defined = np.where(scale > 0, scale, np.nan)
    result: Floats = (a * b).sum(-1) / defined
    return result


def interval(x: Floats, y: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap over the pairs: 95 % interval of their Spearman correlation."""
    index = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    values = spearman(x[index], y[index])
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5]).tolist()
    return low, high
