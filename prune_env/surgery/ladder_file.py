"""Ladders as a safetensors file: what they are solved from, and whose they are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from prune_env.errors import DataError, PlanError, RunError
from prune_env.measure.calibration import Calibration, Moments
from prune_env.storage import load_tensors, save_tensors
from prune_env.surgery.ladder import MEMORY, Ladders
from prune_env.surgery.plan import PruningPlan

FORMAT = 1


def save_ladders(ladders: Ladders, path: str | Path) -> Path:
    """Write orders, statistics and fingerprints to `path`, atomically.

    Factorising is cheap beside a forward pass and makes the same levels again to the bit, so
    levels are not stored.

    Raises:
        RunError: the folder cannot be written.
    """
    calibration = ladders.calibration
    tensors = {f"order/{name}": ladders.orders[name] for name in ladders.groups}
    for name, one in calibration.moments.items():
        tensors |= {f"covariance/{name}": one.covariance_DD, f"mean/{name}": one.mean_D}
    groups = tuple(ladders.groups.values())
    whole = PruningPlan(groups, {group.name: tuple(range(group.units)) for group in groups})
    header = {
        "format": FORMAT,
        "ridge": ladders.ridge,
        "model": calibration.model,
        "calibration": calibration.fingerprint,
        "samples": calibration.samples,
        "moments": {name: [one.count, one.norm] for name, one in calibration.moments.items()},
        "plan": whole.to_json(),
    }
    text = json.dumps(header).encode()
    return save_tensors(path, {**tensors, "header": torch.tensor(list(text), dtype=torch.uint8)})


def load_ladders(
    path: str | Path,
    model: nn.Module,
    calibration: Calibration | None = None,
    memory: int = MEMORY,
) -> Ladders:
    """Read what `save_ladders` wrote.

    Args:
        path: the file.
        model: the dense network the ladders were made of.
        calibration: if given, the file must hold these statistics.
        memory: see `Ladders.of`.

    Raises:
        RunError: the file is missing, damaged, or no ladders.
        ModelError: the ladders are of another network.
        DataError: the ladders are of another calibration.
    """
    tensors = load_tensors(path)
    try:
        header = json.loads(bytes(tensors["header"].tolist()))
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, this version reads {FORMAT}")
        found = _calibration(header["moments"], tensors, header["samples"], header["model"])
        groups = PruningPlan.from_json(header["plan"]).groups
        orders = {group.name: tensors[f"order/{group.name}"] for group in groups}
        ridge = float(header["ridge"])
    except (KeyError, TypeError, ValueError, PlanError) as error:
        raise RunError(f"'{path}' holds no ladders ({error}). Build them again.") from error
    wanted = header["calibration"] if calibration is None else calibration.fingerprint
    if found.fingerprint != wanted:
        raise DataError(
            f"the ladders in '{path}' are of another calibration (fingerprint "
            f"{found.fingerprint}, wanted {wanted}). Build them again."
        )
    return Ladders.of(model, groups, orders, found, ridge=ridge, memory=memory)


def _calibration(
    entries: dict[str, tuple[int, str | None]], tensors: dict[str, Tensor], samples: int, model: str
) -> Calibration:
    moments = {
        name: Moments(name, tensors[f"covariance/{name}"], tensors[f"mean/{name}"], count, norm)
        for name, (count, norm) in entries.items()
    }
    return Calibration(moments, samples, model)
