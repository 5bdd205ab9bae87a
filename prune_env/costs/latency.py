"""Wall-clock time of a forward pass, several networks side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from prune_env.structure.inputs import Inputs, call_model, eval_mode


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass in milliseconds: the median and the quartiles around it."""

    median: float
    low: float
    high: float


def measure_latency(
    models: Mapping[str, nn.Module], inputs: Inputs, repeats: int = 30
) -> dict[str, Latency]:
    """Time every model on `inputs`, in turns, so that a busy machine disturbs all alike."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with ExitStack() as modes, torch.inference_mode():
        for model in models.values():
            modes.enter_context(eval_mode(model))
        for repeat in range(repeats + 2):
            for name, model in models.items():
                _synchronise()
                start = time.perf_counter()
                call_model(model, inputs)
                _synchronise()
                if repeat >= 2:  # the first passes choose algorithms and fill caches
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: _summary(values) for name, values in times.items()}


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _summary(values: list[float]) -> Latency:
    low, median, high = statistics.quantiles(values, n=4)
    return Latency(median, low, high)
