"""Statistics of what every consumer of units reads: one streaming pass over the dense network.

Legend: N column vectors (samples x positions), D columns of a consumer (channels x kernel).

A consumer is a convolution or linear layer with an `in` axis. For each the mean and the covariance
of its input columns are summed (unfolded for k x k, strided and dilated convolution), which is all
that closed-form repair needs; memory does not grow with the number of samples.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.errors import DataError, ModelError
from prune_env.measure.batches import Batch, take_batches
from prune_env.measure.columns import columns_of, flattened, has_columns
from prune_env.measure.fingerprint import digest, fingerprint
from prune_env.measure.norms import norms_behind
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import call_model
from prune_env.structure.rewrite import places_of

MAX_COLUMNS = 8192
"""A wider covariance (512 MB in float64) is not collected: its consumer is cut, not repaired."""

POSITIONS = 64
"""Output positions per sample and layer; neighbours see nearly the same."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Input statistics of one consumer, float64, columns as in its flattened weight.

    Attributes:
        tensor: state_dict key of its weight.
        covariance_DD: S = E[x xT] - mu muT over samples and positions.
        mean_D: mu.
        count: number of column vectors summed.
        norm: prefix of the BatchNorm that takes its output and nothing else, or None.
    """

    tensor: str
    covariance_DD: Tensor
    mean_D: Tensor
    count: int
    norm: str | None

    @property
    def second_DD(self) -> Tensor:
        """H = E[x xT]."""
        return self.covariance_DD + torch.outer(self.mean_D, self.mean_D)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Moments of every consumer, by the state_dict key of its weight.

    Attributes:
        moments: by consumer; those that cannot be repaired are left out.
        samples: how many were seen.
        model: fingerprint of the network.
    """

    moments: Mapping[str, Moments]
    samples: int
    model: str

    @property
    def bytes(self) -> int:
        """Memory held by the moments."""
        return sum(t.numel() * t.element_size() for t in self._tensors().values())

    @property
    def fingerprint(self) -> str:
        """Digest of the moments."""
        return digest(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        covariances = {name: m.covariance_DD for name, m in self.moments.items()}
        return covariances | {f"{name} mean": m.mean_D for name, m in self.moments.items()}


def calibrate(
    model: nn.Module,
    batches: Sequence[Batch],
    groups: Iterable[PrunableGroup],
    *,
    positions: int | None = POSITIONS,
    seed: int = 0,
) -> Calibration:
    """Collect the moments of all consumers of `groups`.

    Left out, hence cut without repair: grouped convolutions, layers with a forward of their own,
    weights that other layers share, more than `MAX_COLUMNS` columns (warns).

    Args:
        model: the dense network; copied, run in eval mode.
        batches: calibration data. With `positions` None it does not matter how it is split.
        groups: whose consumers are wanted.
        positions: output positions drawn per layer and batch, the same for its samples; None
            takes all.
        seed: of that draw.

    Raises:
        DataError: there are no batches.
        ModelError: NaN or infinite activations; names the layer.
    """
    if not batches:
        raise DataError("there are no batches to calibrate on. Is the data set empty?")
    read = ("in", "weight")
    wanted = {axis.tensor for group in groups for axis in group.axes if axis.role in read}
    dense = copy.deepcopy(model).eval()
    paths = _readable(dense, wanted)
    norms = norms_behind(copy.deepcopy(dense), paths, take_batches(batches[:1], 2)[0].inputs)
    generator = torch.Generator().manual_seed(seed)
    sums = {path: _Sum(dense.get_submodule(path), path) for path in paths}

    def reader(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            _require_finite(path, inputs[0])
            sums[path].add(columns_of(module, inputs[0], positions, generator))

        return hook

    for path in paths:
        dense.get_submodule(path).register_forward_pre_hook(reader(path))
    with torch.no_grad():
        for batch in batches:
            call_model(dense, batch.inputs)
    found = [total.finish(norms.get(path)) for path, total in sums.items() if total.count]
    moments = {one.tensor: one for one in found}
    return Calibration(moments, sum(len(batch) for batch in batches), fingerprint(model))


class _Sum:
    """Running sums of one consumer, taken around the mean of its first columns.

    That keeps the covariance exact where the mean is large beside it: a constant input has none.
    """

    def __init__(self, module: nn.Module, path: str) -> None:
        self._module, self._path, self.count = module, path, 0
        self._around: Any = None
        self._first: Any = 0.0
        self._second: Any = 0.0

    def add(self, columns_ND: Tensor) -> None:
        """Columns of one batch, which fit float32; sums over batches are kept in float64."""
        columns_ND = columns_ND.to(torch.promote_types(columns_ND.dtype, torch.float32))
        if self._around is None:
            self._around = columns_ND[: max(1, len(columns_ND) // 8)].mean(0)
        columns_ND = columns_ND - self._around
        second_DD = _gram(columns_ND)
        _require_finite(self._path, second_DD)
        self._first = self._first + columns_ND.sum(0).double()
        self._second = self._second + second_DD.double()
        self.count += len(columns_ND)

    def finish(self, norm: str | None) -> Moments:
        """Sums as means, in the order of the weight's columns."""
        offset_D, order = (self._first / self.count).cpu(), flattened(self._module)
        second_DD = (self._second / self.count).cpu()
        whole = second_DD.triu() + second_DD.triu(1).T
        covariance_DD = (whole - torch.outer(offset_D, offset_D))[order][:, order]
        mean_D = (self._around.double().cpu() + offset_D)[order]
        return Moments(f"{self._path}.weight".lstrip("."), covariance_DD, mean_D, self.count, norm)


def _gram(columns_ND: Tensor) -> Tensor:
    """xT x; only the upper triangle of blocks holds values, which saves a third of the work."""
    width = columns_ND.shape[1]
    second_DD = columns_ND.new_zeros(width, width)
    step = max(96, -(-width // 4))
    for start in range(0, width, step):
        block = columns_ND[:, start : start + step]
        second_DD[start : start + step, start:] = block.T @ columns_ND[:, start:]
    return second_DD


def _require_finite(path: str, x: Tensor) -> None:
    # The sum is NaN or infinite when any value is: one pass without a copy.
    if not bool(torch.isfinite(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)))):
        raise ModelError(
            f"the input of '{path}' holds NaN, infinite or far too large values on the "
            "calibration data. Check the inputs and the layers before it."
        )


def _readable(model: nn.Module, wanted: set[str]) -> list[str]:
    """Paths of the layers among `wanted` weights whose input columns are collected."""
    places, paths = places_of(model), []
    for name in sorted(wanted & places.keys()):
        ((module, leaf), *others) = places[name]
        if others or leaf != "weight" or not has_columns(module):
            continue
        width = len(flattened(module))
        path = name.rpartition(".")[0]
        if width > MAX_COLUMNS:
            warnings.warn(
                f"'{path}' has {width} input columns, too wide for their covariance (limit "
                f"{MAX_COLUMNS}); it is cut without repair.",
                RuntimeWarning,
                stacklevel=3,
            )
            continue
        paths.append(path)
    return paths
