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

from prune_env.calibration.statistics import Calibration, Moments
from prune_env.errors import GroupError, ModelError, look_up
from prune_env.repair.least_squares import RIDGE, factorise
from prune_env.structure.groups import Axis, PrunableGroup, Role, pool
from prune_env.structure.rewrite import require_tensors, tensors_of


@dataclass(frozen=True, eq=False)
class Context:
    """What a criterion may know beside the tensor.

    Attributes:
        axis: where the units live in the tensor.
        grad: gradient of the loss with respect to it, if gradients were given.
        generator: of random numbers.
        moments: what the layer reads, if statistics were given; columns as in its flattened weight.
    """

    axis: Axis
    grad: Tensor | None
    generator: torch.Generator
    moments: Moments | None = None


@dataclass(frozen=True)
class Criterion:
    """An elementwise saliency, the roles of the tensors it is taken of, what it needs."""

    saliency: Callable[[Tensor, Context], Tensor]
    roles: tuple[Role, ...] = ("out", "weight")
    gradients: bool = False
    statistics: bool = False


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


def wanda(tensor: Tensor, context: Context) -> Tensor:
    """|w| times the norm of what it multiplies (Sun et al. 2023, Wanda, eq. 1).

    Summed over the columns that read a channel or neuron it is Wanda-sp (An et al. 2024, FLAP).
    """
    norm_D: Tensor = _moments(context).second_DD.diagonal().clamp(min=0).sqrt().to(tensor)
    return tensor.abs() * _along_inputs(norm_D, tensor, context.axis)


def sparsegpt(tensor: Tensor, context: Context) -> Tensor:
    """w^2 / [H_j^-1]_jj with H_j of column j and those to its right.

    The loss of w when the columns to its right take over for it (Frantar & Alistarh 2023,
    SparseGPT, eq. 5, where the diagonal comes from a Cholesky factor of H^-1); on the dense
    weights, where SparseGPT itself looks at each 128 columns when it reaches them.
    """
    lower_DD = factorise(_moments(context).second_DD, SCORE_RIDGE)[1]
    upper_DD = torch.linalg.cholesky(torch.cholesky_inverse(lower_DD), upper=True)
    inverse_D: Tensor = upper_DD.diagonal().square().to(tensor)
    return tensor.square() / _along_inputs(inverse_D, tensor, context.axis)


def _along_inputs(values_D: Tensor, tensor: Tensor, axis: Axis) -> Tensor:
    """A value per column, so that it broadcasts over the outputs of the tensor."""
    inputs = axis.dims[:2][-1]  # the only dim of `in`, the second of `weight`
    return values_D[:, None] if inputs == 0 else values_D.reshape(tensor.shape[1:])


def _moments(context: Context) -> Moments:
    if context.moments is None:
        raise ModelError(
            f"this criterion needs to know what '{context.axis.tensor}' reads. Pass `statistics="
            "calibrate(model, batches, groups)`."
        )
    return context.moments


SCORE_RIDGE = 100 * RIDGE
"""Of scores that need an inverse: SparseGPT's 1 % of the mean diagonal."""

CRITERIA: dict[str, Criterion] = {
    "l1": Criterion(l1),
    "l2": Criterion(l2),
    "random": Criterion(random),
    "bn_scale": Criterion(bn_scale, roles=("scale",)),
    "taylor": Criterion(taylor, roles=("out", "weight", "scale", "shift"), gradients=True),
    "geometric_median": Criterion(geometric_median, roles=("out",)),
    "wanda": Criterion(wanda, roles=("in", "weight"), statistics=True),
    "sparsegpt": Criterion(sparsegpt, roles=("in", "weight"), statistics=True),
}


def score_units(
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    criterion: str | Criterion = "l1",
    *,
    gradients: Mapping[str, Tensor] | None = None,
    statistics: Calibration | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score of every unit of every group, higher is more important.

    A criterion of statistics passes over layers that have none; a group without any is scored by
    L1.

    Args:
        model: the dense network.
        groups: groups of this network.
        criterion: a name in `CRITERIA` or a criterion of your own.
        gradients: by state_dict key, for criteria that ask for them.
        statistics: of this network, for criteria that ask for them.
        seed: of criteria that are random.

    Returns:
        Scores by group name, each in the shape of the group's grid, float64.

    Raises:
        ConfigError: unknown criterion.
        GroupError: the groups are of another model, or one has no tensor with the roles the
            criterion looks at.
        ModelError: weights hold NaN or infinite values, or what the criterion asks for was not
            given.
    """
    chosen = criterion_named(criterion) if isinstance(criterion, str) else criterion
    require_tensors(model, groups)
    tensors = tensors_of(model)
    require_finite(tensors)
    generator = torch.Generator().manual_seed(seed)
    moments = {} if statistics is None else statistics.moments
    scores = {}
    for group in groups:
        used, axes = _applied(group, chosen, statistics)
        total = torch.zeros(group.grid, dtype=torch.float64)
        for axis in axes:
            grad = (gradients or {}).get(axis.tensor)
            context = Context(axis, grad, generator, moments.get(axis.tensor))
            saliency = used.saliency(_real(tensors[axis.tensor].detach()), context)
            total += pool(axis, saliency.double().cpu(), group.grid)
        scores[group.name] = total
    return scores


def _real(tensor: Tensor) -> Tensor:
    """`tensor` in floating point: units may live in a mask of booleans."""
    return tensor if tensor.is_floating_point() else tensor.float()


def _applied(
    group: PrunableGroup, criterion: Criterion, statistics: Calibration | None
) -> tuple[Criterion, list[Axis]]:
    """The criterion for a group (L1 where statistics are wanted and missing), and its axes."""
    axes = [axis for axis in group.axes if axis.role in criterion.roles]
    if criterion.statistics and statistics is not None:
        axes = [axis for axis in axes if axis.tensor in statistics.moments]
        if not axes:
            return _applied(group, CRITERIA["l1"], None)
    if not axes:
        raise GroupError(
            f"group '{group.name}' has no tensor with role {' or '.join(criterion.roles)}, as the "
            "criterion asks (no normalisation layer?). Use criterion 'l1', or ignore the layer."
        )
    return criterion, axes


def criterion_named(name: str) -> Criterion:
    """The criterion called `name`.

    Raises:
        ConfigError: there is none.
    """
    return look_up("criterion", name, CRITERIA)


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check weights and buffers.

    Raises:
        ModelError: names the first tensor with NaN or infinite values, or without any.
    """
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ModelError(f"'{name}' is on the meta device: load the weights first.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"'{name}' holds {bad} NaN or infinite values. The network did not train properly; "
                "load a good checkpoint before pruning."
            )
