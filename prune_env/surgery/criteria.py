"""Criteria: how much a unit matters, as elementwise functions of its tensors.

A criterion is one function from a tensor to a saliency of the same shape and the roles of the
tensors it looks at. Summing elements into units is `pool`'s work, so any criterion serves any unit.
To add one, write the function and put it into `CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prune_env.errors import GroupError, ModelError, look_up
from prune_env.structure.groups import Axis, PrunableGroup, Role, pool
from prune_env.structure.rewrite import require_tensors, tensors_of


@dataclass(frozen=True, eq=False)
class Context:
    """What a criterion may know beside the tensor.

    Attributes:
        axis: where the units live in the tensor.
        grad: gradient of the loss with respect to it, if gradients were given.
        generator: of random numbers.
    """

    axis: Axis
    grad: Tensor | None
    generator: torch.Generator


@dataclass(frozen=True)
class Criterion:
    """An elementwise saliency, the roles of the tensors it is taken of, what it needs."""

    saliency: Callable[[Tensor, Context], Tensor]
    roles: tuple[Role, ...] = ("out",)
    gradients: bool = False


def l1(tensor: Tensor, context: Context) -> Tensor:
    """|w| (Li et al. 2017, Pruning Filters for Efficient ConvNets)."""
    return tensor.abs()


def l2(tensor: Tensor, context: Context) -> Tensor:
    """w^2, which orders units by their L2 norm."""
    return tensor.square()


def random(tensor: Tensor, context: Context) -> Tensor:
    """Uniform noise."""
    return torch.rand(tensor.shape, generator=context.generator)


def bn_scale(tensor: Tensor, context: Context) -> Tensor:
    """|gamma| of the normalisation behind the unit (Liu et al. 2017, Network Slimming)."""
    return tensor.abs()


def taylor(tensor: Tensor, context: Context) -> Tensor:
    """(w dL/dw)^2 (Molchanov et al. 2019, Importance Estimation, eq. 8)."""
    if context.grad is None:
        raise ModelError(
            f"criterion 'taylor' needs the gradient of '{context.axis.tensor}'. Pass `gradients="
            "loss_gradients(model, batches)`; if you did, the tensor is not used by the loss."
        )
    return (tensor * context.grad).square()


def geometric_median(tensor: Tensor, context: Context) -> Tensor:
    """(w - m)^2 with m the geometric median of the units (He et al. 2019, FPGM, eq. 4-7).

    Units close to m can be represented by the others. m is found by Weiszfeld's iteration.
    """
    dim = context.axis.dims[0]
    rows_UE = tensor.movedim(dim, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]
    median_E = rows_UE.mean(0)
    for _ in range(20):
        weights_U = 1.0 / (rows_UE - median_E).norm(dim=1).clamp(min=1e-8)
        median_E = (weights_U[:, None] * rows_UE).sum(0) / weights_U.sum()
    squares = (rows_UE - median_E).square()
    moved = squares.reshape(tensor.movedim(dim, 0).shape)
    return moved.movedim(0, dim)


CRITERIA: dict[str, Criterion] = {
    "l1": Criterion(l1),
    "l2": Criterion(l2),
    "random": Criterion(random),
    "bn_scale": Criterion(bn_scale, roles=("scale",)),
    "taylor": Criterion(taylor, roles=("out", "scale", "shift"), gradients=True),
    "geometric_median": Criterion(geometric_median),
}


def score_units(
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    criterion: str | Criterion = "l1",
    *,
    gradients: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score of every unit of every group, higher is more important.

    Args:
        model: the dense network.
        groups: groups of this network.
        criterion: a name in `CRITERIA` or a criterion of your own.
        gradients: by state_dict key, for criteria that ask for them.
        seed: of criteria that are random.

    Returns:
        Scores by group name, each in the shape of the group's grid, float64.

    Raises:
        ConfigError: unknown criterion.
        GroupError: the groups are of another model, or one has no tensor with the roles the
            criterion looks at.
        ModelError: weights hold NaN or infinite values.
    """
    chosen = criterion_named(criterion) if isinstance(criterion, str) else criterion
    require_tensors(model, groups)
    tensors = tensors_of(model)
    require_finite(tensors)
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for group in groups:
        axes = [axis for axis in group.axes if axis.role in chosen.roles]
        if not axes:
            raise GroupError(
                f"group '{group.name}' has no tensor with role {' or '.join(chosen.roles)}, as the "
                "criterion asks (no normalisation layer?). Use criterion 'l1', or ignore the layer."
            )
        total = torch.zeros(group.grid, dtype=torch.float64)
        for axis in axes:
            grad = (gradients or {}).get(axis.tensor)
            context = Context(axis, grad, generator)
            saliency = chosen.saliency(tensors[axis.tensor].detach(), context)
            total += pool(axis, saliency.double().cpu(), group.grid)
        scores[group.name] = total
    return scores


def criterion_named(name: str) -> Criterion:
    """The criterion called `name`.

    Raises:
        ConfigError: there is none.
    """
    return look_up("criterion", name, CRITERIA)


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check weights and buffers.

    Raises:
        ModelError: names the first tensor with NaN or infinite values.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"'{name}' holds {bad} NaN or infinite values. The network did not train properly; "
                "load a good checkpoint before pruning."
            )
