"""Ladders as a safetensors file: their factors, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.calibration.statistics import Calibration
from prune_env.errors import DataError, ModelError, PlanError, RunError
from prune_env.fingerprint import fingerprint
from prune_env.plan.plan import PruningPlan
from prune_env.records import read_record
from prune_env.repair.consumers import Consumer, LevelSolver, chosen_columns
from prune_env.repair.ladder import MEMORY, Ladders, Origin, Rungs, detached
from prune_env.repair.least_squares import Solver
from prune_env.repair.masked_squares import UPDATES, MaskedSolver
from prune_env.storage import Unreadable, load_tensors, parse, save_tensors
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.rewrite import require_tensors

FORMAT = 3

KINDS: dict[str, type[Any]] = {"columns": Solver, "weights": MaskedSolver}
"""Solvers that can be written: their dense weights are taken from the network."""


def save_ladders(ladders: Ladders, path: str | Path) -> Path:
    """Write orders, factors and fingerprints to `path`, atomically.

    Levels are not stored: they are solved again to the bit when they are asked for.

    Raises:
        RunError: the folder cannot be written.
    """
    tensors = {f"order/{name}": order for name, order in ladders.orders.items()}
    entries: dict[str, list[dict[str, Any]]] = {}
    for name in ladders.groups:
        pairs = zip(ladders.consumers[name], ladders.solvers[name], strict=True)
        entries[name] = []
        for number, (consumer, solver) in enumerate(pairs):
            entry, held = _written(consumer, solver)
            entries[name].append(entry)
            tensors |= {f"{key}/{number}/{name}": tensor for key, tensor in held.items()}
    groups = tuple(ladders.groups.values())
    whole = PruningPlan(groups, {group.name: tuple(range(group.units)) for group in groups})
    header = {
        "format": FORMAT,
        "ridge": ladders.ridge,
        "made_of": asdict(ladders.made_of),
        "rungs": entries,
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
        calibration: if given, the ladders must be made of these statistics.
        memory: see `Ladders.of`.

    Raises:
        RunError: the file is missing, damaged, or no ladders.
        GroupError, ModelError: the ladders are of another network.
        DataError: the ladders are of another calibration.
    """
    tensors = load_tensors(path)
    try:
        found = parse(bytes(tensors["header"].tolist()).decode())
        if found.get("format") != FORMAT:
            raise Unreadable(f"format {found.get('format')!r}, this version reads {FORMAT}")
        header = read_record(_Header, found)
        groups = PruningPlan.from_json(header.plan).groups
    except (LookupError, TypeError, ValueError, PlanError) as error:
        raise _no_ladders(path, error) from error
    _require_origin(path, header.made_of, model, groups, calibration)
    dense, rungs, orders = detached(model), {}, {}
    try:
        for group in groups:
            pairs = [
                _read(entry, f"{number}/{group.name}", tensors, dense)
                for number, entry in enumerate(header.rungs[group.name])
            ]
            rungs[group.name] = Rungs(tuple(c for c, _ in pairs), tuple(s for _, s in pairs))
            orders[group.name] = tensors[f"order/{group.name}"]
        return Ladders.joined(
            model, groups, orders, header.made_of, rungs, ridge=header.ridge, memory=memory
        )
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise _no_ladders(path, error) from error  # sealed, but by something else than us


@dataclass(frozen=True)
class _Header:
    format: int
    ridge: float
    made_of: Origin
    rungs: dict[str, list[dict[str, Any]]]
    plan: str


def _no_ladders(path: str | Path, error: Exception) -> RunError:
    return RunError(f"'{path}' holds no ladders ({error}). Build them again.")


def _require_origin(
    path: str | Path,
    made_of: Origin,
    model: nn.Module,
    groups: tuple[PrunableGroup, ...],
    calibration: Calibration | None,
) -> None:
    require_tensors(model, groups)
    if made_of.model != fingerprint(model):
        raise ModelError(
            f"the ladders in '{path}' are of another {type(model).__name__} (fingerprint "
            f"{made_of.model}, this model {fingerprint(model)}). Build them again."
        )
    if calibration is not None and calibration.fingerprint != made_of.calibration:
        raise DataError(
            f"the ladders in '{path}' are of another calibration (fingerprint "
            f"{made_of.calibration}, wanted {calibration.fingerprint}). Build them again."
        )


def _written(consumer: Consumer, solver: LevelSolver) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The plain fields of a consumer and its solver, and the tensors of both."""
    (kind,) = (name for name, one in KINDS.items() if isinstance(solver, one))
    values: Mapping[str, Any] = {**vars(consumer), **vars(solver)}
    skipped = {"_losses", *(key for key in values if key.startswith("dense_"))}
    tensors = {k: v for k, v in values.items() if isinstance(v, Tensor) and k not in skipped}
    plain = {k: v for k, v in values.items() if k not in tensors and k not in skipped}
    if "update" in plain:
        (plain["update"],) = (n for n, update in UPDATES.items() if update is plain["update"])
    return {"kind": kind, **plain}, tensors


def _read(
    entry: Mapping[str, Any], place: str, tensors: Mapping[str, Tensor], dense: Mapping[str, Tensor]
) -> tuple[Consumer, LevelSolver]:
    """What `_written` took apart."""
    kind = KINDS[entry["kind"]]
    names = {field.name for one in (Consumer, kind) for field in fields(one)}
    # In memory of their own: how a slice of a file is aligned would show in the last bits.
    held = {n: tensors[f"{n}/{place}"].clone() for n in names if f"{n}/{place}" in tensors}
    values = {**entry, **held}
    consumer = Consumer(**{field.name: values[field.name] for field in fields(Consumer)})
    if "update" in values:
        values["update"] = UPDATES[values["update"]]
    rows_OC = consumer.rows(dense[consumer.tensor])
    values["dense_OC"] = rows_OC
    values["dense_OD"] = chosen_columns(rows_OC, consumer.columns_D)
    solver = kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})
    return consumer, solver
