"""Statistics of what every consumer of units reads: one streaming pass over the dense network.

Legend: B batch, P positions, C channels, D columns of a consumer (C x kernel), G groups of a
convolution, O rows.

A consumer is a convolution or linear layer with an `in` axis. For each the second moment and the
mean of its input columns are summed (unfolded for k x k, strided and dilated convolution), which is
all that closed-form repair needs; memory does not grow with the number of samples.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_env.errors import ModelError
from prune_env.measure.batches import Batch
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import call_model
from prune_env.structure.rewrite import tensors_of


@dataclass(frozen=True, eq=False)
class Moments:
    """Input statistics of one consumer.

    Attributes:
        tensor: state_dict key of its weight.
        second_GDD: mean of x xT over samples and positions, float64.
        mean_GD: mean of x, float64.
        count: number of columns vectors summed.
        norm: prefix of the BatchNorm that reads its output and nothing else does, or None.
    """

    tensor: str
    second_GDD: Tensor
    mean_GD: Tensor
    count: int
    norm: str | None

    @property
    def covariance_GDD(self) -> Tensor:
        """S = H - mu muT."""
        return self.second_GDD - self.mean_GD[:, :, None] * self.mean_GD[:, None, :]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Moments of every consumer, by the state_dict key of its weight."""

    moments: Mapping[str, Moments]
    samples: int

    @property
    def bytes(self) -> int:
        """Memory held by the moments."""
        tensors = [t for m in self.moments.values() for t in (m.second_GDD, m.mean_GD)]
        return sum(t.numel() * t.element_size() for t in tensors)


def calibrate(
    model: nn.Module,
    batches: Sequence[Batch],
    groups: Iterable[PrunableGroup],
    *,
    positions: int | None = 64,
    seed: int = 0,
) -> Calibration:
    """Collect the moments of all consumers of `groups`.

    Args:
        model: the dense network; copied, run in eval mode.
        batches: calibration data.
        groups: whose consumers are wanted.
        positions: output positions drawn per sample and layer (they are strongly correlated);
            None takes all.
        seed: of that draw.

    Raises:
        ModelError: NaN or infinite activations; names the layer.
    """
    dense = copy.deepcopy(model).eval()
    wanted = {axis.tensor for group in groups for axis in group.axes if axis.role == "in"}
    collector = _Collector(dense, wanted, positions, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for batch in batches:
            call_model(dense, batch.inputs)
            collector.end_batch()
    return Calibration(collector.finish(), sum(len(batch) for batch in batches))


class _Collector:
    """Hooks on consumers and BatchNorms of one network."""

    def __init__(
        self,
        model: nn.Module,
        wanted: set[str],
        positions: int | None,
        generator: torch.Generator,
    ) -> None:
        self._sums: dict[str, list[Any]] = {}
        self._positions, self._generator = positions, generator
        self._makers: dict[int, str] = {}
        self._alive: list[Tensor] = []
        self._norms: dict[str, set[str]] = {}
        known = tensors_of(model)
        for path, module in model.named_modules():
            name = f"{path}.weight" if path else "weight"
            if name in wanted and name in known and _followed(module):
                module.register_forward_hook(self._reader(name))
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(self._norm_reader(path))

    def _reader(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._add(name, columns_of(module, inputs[0], self._positions, self._generator))
            self._makers[id(output)] = name
            self._alive.append(output)  # keeps the id from being used again

        return hook

    def _norm_reader(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            maker = self._makers.get(id(inputs[0]))
            if maker is not None:
                self._norms.setdefault(maker, set()).add(path)

        return hook

    def _add(self, name: str, columns_GND: Tensor) -> None:
        if not bool(torch.isfinite(columns_GND).all()):
            raise ModelError(
                f"the input of '{name.removesuffix('.weight')}' holds NaN or infinite values on "
                "the calibration data. Check the inputs and the layers before it."
            )
        # One batch fits float32; sums over batches are kept in float64.
        second = columns_GND.transpose(1, 2) @ columns_GND
        total = self._sums.setdefault(name, [0.0, 0.0, 0])
        total[0] = total[0] + second.double()
        total[1] = total[1] + columns_GND.sum(1).double()
        total[2] += columns_GND.shape[1]

    def end_batch(self) -> None:
        """Forget the outputs of the batch."""
        self._makers.clear()
        self._alive.clear()

    def finish(self) -> dict[str, Moments]:
        """Sums as means."""
        result = {}
        for name, (second, total, count) in self._sums.items():
            norms = self._norms.get(name, set())
            norm = next(iter(norms)) if len(norms) == 1 else None
            result[name] = Moments(name, second / count, total / count, count, norm)
        return result


MAX_COLUMNS = 8192
"""A wider second moment (512 MB in float64) is not collected: its consumer is cut, not repaired."""


def _followed(module: nn.Module) -> bool:
    """Whether the input columns of a module are collected; the others are not repaired."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
        return False
    if module.weight[0].numel() > MAX_COLUMNS:
        warnings.warn(
            f"a layer with {module.weight[0].numel()} input columns is too wide for its second "
            f"moment (limit {MAX_COLUMNS}); it is cut without repair.",
            RuntimeWarning,
            stacklevel=5,
        )
        return False
    if isinstance(module, nn.Linear):
        return True
    return module.padding_mode == "zeros" and module.padding != "same"


def columns_of(
    module: nn.Module, x: Tensor, positions: int | None, generator: torch.Generator
) -> Tensor:
    """What the rows of a consumer are multiplied with: (G, N, D), N = samples x positions."""
    if isinstance(module, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        return rows[None]
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))
    if isinstance(module, nn.Conv1d):
        x = x.unsqueeze(2)
        kernel, stride = (1, *module.kernel_size), (1, *module.stride)
        padding, dilation = (0, *_numbers(module)), (1, *module.dilation)
    else:
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        padding = _numbers(module)
    unfolded_BDP = F.unfold(x, kernel, dilation, padding, stride)
    if positions is not None and unfolded_BDP.shape[-1] > positions:
        drawn = torch.randperm(unfolded_BDP.shape[-1], generator=generator)[:positions]
        unfolded_BDP = unfolded_BDP[:, :, drawn]
    grouped = unfolded_BDP.unflatten(1, (module.groups, -1))
    columns_GND: Tensor = grouped.permute(1, 0, 3, 2).flatten(1, 2)
    return columns_GND


def _numbers(module: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    """Padding as numbers ("valid" is 0)."""
    if isinstance(module.padding, str):
        return (0,) * len(module.kernel_size)
    return tuple(module.padding)
