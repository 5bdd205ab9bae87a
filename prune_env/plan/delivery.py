"""From a plan, the dense network and data to the network that was measured: the one way there."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.checks import whole
from prune_env.criteria.elementwise import require_finite
from prune_env.errors import ConfigError, ModelError
from prune_env.fingerprint import digest, fingerprint
from prune_env.plan.cut import cut
from prune_env.plan.plan import PruningPlan
from prune_env.plan.recipe import Recipe
from prune_env.quality.batches import (
    Batch,
    channels_last,
    first_samples,
    loader_of,
    take_batches,
)
from prune_env.quality.inference import fitting_batch
from prune_env.repair.build import ladders_of
from prune_env.repair.repairs import Repair, repair_named
from prune_env.structure.blame import naming_layer
from prune_env.structure.copies import copied, sharing
from prune_env.structure.inputs import call_model, device_of
from prune_env.structure.rewrite import tensors_of
from prune_env.structure.trace import tensors_in

_log = logging.getLogger(__name__)


def apply(
    plan: PruningPlan,
    model: nn.Module,
    data: Iterable[Any],
    repair: str | Repair | None = None,
    *,
    calibration_samples: int | None = None,
    batch: Callable[[Any], Any] | None = None,
) -> nn.Module:
    """The network that was measured: `model` cut as `plan` says, and repaired on all samples.

    The same bits as `env.network()` of the episode that gave the plan, from the plan, the dense
    network and the same data alone, in this process or another. Statistics of the dense network are
    collected once; whatever order the units were ranked in makes no difference. A plan of several
    rounds is applied and repaired round by round.

    Args:
        plan: of `env.plan`, `PruningPlan.load(...)` or made by hand.
        model: the dense network, as it was then; it is never changed.
        data: the training loader that the task was made with, in the same order. A shuffled one
            gives other samples, hence a slightly different network; that is logged.
        repair: in place of the plan's own: a name in `REPAIRS`, or a `Repair`.
        calibration_samples: in place of the plan's own number.
        batch: the task's function from what the loader gives to (inputs, targets), if it has one.

    Returns:
        A new network in eval mode; what is frozen in `model` is frozen there.

    Raises:
        PlanError: the plan was made for another model.
        ConfigError: no such repair, or the plan was measured with one that no file can hold.
        DataError: the data are empty or malformed.
        ModelError: the model cannot be copied or run on the data, or holds NaN or infinity.
    """
    if calibration_samples is not None:
        whole(1)("calibration_samples", calibration_samples)
    network, data = model, loader_of(data, batch)
    for one in plan.rounds or (plan,):
        network = _applied(one, network, data, repair, calibration_samples)
    return network


def _applied(
    plan: PruningPlan,
    model: nn.Module,
    data: Iterable[Any],
    repair: str | Repair | None,
    samples: int | None,
) -> nn.Module:
    """One round of `apply`."""
    recipe = plan.recipe or Recipe()
    if samples is not None:
        recipe = dataclasses.replace(recipe, calibration_samples=samples)
    chosen = _chosen(recipe, repair)
    plan.check(model)
    require_finite(tensors_of(model))
    dense = copied(model)
    tried = sharing(dense)  # a pass may write to buffers
    batches = calibration_batches(tried, data, recipe.calibration_samples, recipe.batch_size)
    _require_running(tried, batches)
    _report(recipe, dense, batches)
    return repaired(plan, dense, batches, chosen, recipe.seed)


def repaired(
    plan: PruningPlan, dense: nn.Module, batches: Sequence[Batch], repair: Repair, seed: int
) -> nn.Module:
    """`dense` cut as `plan` says, repaired on `batches`, in eval mode.

    See `apply`, which looks after everything else.
    """
    orders = {group.name: _order(plan.kept[group.name], group.cells) for group in plan.groups}
    ladders = ladders_of(dense, batches, plan.groups, orders, seed=seed)
    small = cut(dense, plan, repair.overlay(ladders, plan.levels)).eval()
    with naming_layer():
        repair.finish(small, batches)
    return small


def calibration_batches(
    model: nn.Module, data: Iterable[Any], samples: int, batch_size: int = 0
) -> list[Batch]:
    """The first `samples` samples of `data`, in batches that statistics are collected on.

    Raises:
        DataError: see `take_batches`.
    """
    device = device_of(model)
    batches = [batch.to(device) for batch in take_batches(data, samples)]
    size = batch_size or fitting_batch(model, first_samples(batches[0], 2).inputs)
    return [channels_last(batch) for batch in take_batches(batches, None, size)]


def fingerprint_of(batches: Sequence[Batch]) -> str:
    """Digest of the inputs of these batches, and of how they are split."""
    return digest(
        {f"{i}/{j}": tensor for i, batch in enumerate(batches)
         for j, tensor in enumerate(tensors_in(batch.inputs))}
    )  # fmt: skip


def _order(kept: Sequence[int], cells: int) -> Tensor:
    """All units, the kept ones first, each part as it lies in the grid.

    So what is solved depends on which units stay, and not on how they were ranked.
    """
    stay = torch.zeros(cells, dtype=torch.bool)
    stay[list(kept)] = True
    return torch.cat([stay.nonzero().squeeze(1), (~stay).nonzero().squeeze(1)])


def _chosen(recipe: Recipe, repair: str | Repair | None) -> Repair:
    if isinstance(repair, Repair):
        return repair
    name = recipe.repair if repair is None else repair
    if name is None:
        raise ConfigError(
            "this plan was measured with a repair of your own, which a plan cannot carry. Give the "
            "same one: apply(plan, model, data, repair=...)."
        )
    return repair_named(name)


def _require_running(dense: nn.Module, batches: Sequence[Batch]) -> None:
    try:
        with torch.no_grad():
            call_model(dense, first_samples(batches[0], 2).inputs)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{type(dense).__name__} does not run on the data: {first}. Give the loader that the "
            "plan was made with."
        ) from error


def _report(recipe: Recipe, dense: nn.Module, batches: Sequence[Batch]) -> None:
    """Say aloud where the network or the samples are not those that the plan was measured with."""
    found = sum(map(len, batches))
    if found < recipe.calibration_samples:
        _log.warning(
            "the loader has %d samples, the plan asks for %d to repair on; all are used.",
            found, recipe.calibration_samples,
        )  # fmt: skip
    now: Mapping[str, str] = {"model": fingerprint(dense), "data": fingerprint_of(batches)}
    cures = {
        "model": "the dense network has other weights than the one",
        "data": "the first samples are others than those (another loader, or a shuffled one?)",
    }
    for name, cure in cures.items():
        if getattr(recipe, name) not in ("", now[name]):
            _log.warning("%s that the plan was measured with; the result differs.", cure)
