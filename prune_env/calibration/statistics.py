"""Statistics of what every consumer of units reads: streaming passes over the dense network.

Legend: N column vectors (samples x positions), D columns of a consumer (channels x kernel).

A consumer is a convolution or linear layer with an `in` axis. For each the mean and the covariance
of its input columns are summed (unfolded for k x k, strided and dilated convolution), which is all
that closed-form repair needs; memory does not grow with the number of samples. Layers that read the
same tensor share its statistics.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prune_env.calibration.portions import READ, default_memory, portions
from prune_env.calibration.reading import Reading
from prune_env.errors import DataError
from prune_env.fingerprint import digest
from prune_env.quality.batches import Batch
from prune_env.structure.groups import PrunableGroup

MAX_COLUMNS = 8192
"""A wider covariance (512 MB in float64) is collected in blocks along its diagonal."""

POSITIONS = 64
"""Output positions per sample and layer; neighbours see nearly the same."""


@dataclass(frozen=True, eq=False)
class Part:
    """Statistics of some columns of a consumer; correlations with other parts are not known.

    Attributes:
        columns_D: of its flattened weight.
        covariance_DD: S = E[x xT] - mu muT over samples and positions; float64, or float32 for a
            matrix wider than `sums.WIDE_COLUMNS`.
        mean_D: mu, float64.
    """

    columns_D: Tensor
    covariance_DD: Tensor
    mean_D: Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Input statistics of one consumer.

    Attributes:
        tensor: state_dict key of its weight.
        parts: one of all columns, or several where all together would be too wide.
        width: columns of its flattened weight.
        count: number of column vectors summed.
        norm: prefix of the BatchNorm that takes its output and nothing else, or None.
    """

    tensor: str
    parts: tuple[Part, ...]
    width: int
    count: int
    norm: str | None

    @property
    def covariance_DD(self) -> Tensor:
        """S of all columns as in the flattened weight; 0 between parts."""
        if len(self.parts) == 1 and len(self.parts[0].mean_D) == self.width:
            return self.parts[0].covariance_DD
        whole_DD = torch.zeros(self.width, self.width, dtype=torch.float64)
        for part in self.parts:
            whole_DD[part.columns_D[:, None], part.columns_D] = part.covariance_DD.double()
        return whole_DD

    @property
    def mean_D(self) -> Tensor:
        """mu of all columns as in the flattened weight."""
        mean_D = torch.zeros(self.width, dtype=torch.float64)
        for part in self.parts:
            mean_D[part.columns_D] = part.mean_D
        return mean_D

    @property
    def second_DD(self) -> Tensor:
        """H = E[x xT], mu muT between parts; float64."""
        return self.covariance_DD.double().addr(self.mean_D, self.mean_D)


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
        """Memory held by the moments; what several consumers share counts once."""
        parts = {id(part): part for one in self.moments.values() for part in one.parts}
        tensors = [t for part in parts.values() for t in (part.covariance_DD, part.mean_D)]
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def fingerprint(self) -> str:
        """Digest of the moments."""
        return joined(self.digests())

    def digests(self) -> dict[str, str]:
        """Digest of the moments of every consumer."""
        known: dict[int, str] = {}
        for one in self.moments.values():
            for part in one.parts:
                if id(part) not in known:
                    known[id(part)] = digest(vars(part))
        return {
            name: joined({str(i): known[id(part)] for i, part in enumerate(one.parts)})
            for name, one in self.moments.items()
        }


def joined(digests: Mapping[str, str]) -> str:
    """One digest of many; their order does not matter."""
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:20]


def calibrate(
    model: nn.Module,
    batches: Sequence[Batch],
    groups: Iterable[PrunableGroup],
    *,
    positions: int | None = POSITIONS,
    seed: int = 0,
) -> Calibration:
    """Collect the moments of all consumers of `groups` in one pass, however much memory it takes.

    Left out, hence cut without repair: grouped convolutions, layers with a forward of their own,
    weights that other layers share. More than `MAX_COLUMNS` columns get several parts (warns).

    Args:
        model: the dense network; a copy that shares its weights is run in eval mode.
        batches: calibration data. With `positions` None it does not matter how it is split.
        groups: whose consumers are wanted.
        positions: output positions drawn per convolution and batch, the same for its samples; None
            takes all.
        seed: of that draw.

    Raises:
        DataError: there are no batches.
        ModelError: NaN or infinite activations; names the layer. The model cannot be copied.
    """
    wanted = tuple(groups)
    ((_, found),) = calibrations(
        model, batches, wanted, memory=math.inf, positions=positions, seed=seed
    )
    return found


def calibrations(
    model: nn.Module,
    batches: Sequence[Batch],
    groups: Sequence[PrunableGroup],
    *,
    memory: float | None = None,
    positions: int | None = POSITIONS,
    seed: int = 0,
) -> Iterator[tuple[tuple[PrunableGroup, ...], Calibration]]:
    """The moments of a few groups at a time, a pass over the data for each portion.

    All portions together are what `calibrate` finds, to the bit. A pass ends behind the last
    layer it is about.

    Args:
        memory: bytes that the covariances of a portion of more than one group may take; None for
            `default_memory`.

    See `calibrate` for the other arguments and errors.
    """
    if not batches:
        raise DataError("there are no batches to calibrate on. Is the data set empty?")
    reading = Reading.of(model, batches, groups, MAX_COLUMNS, positions, seed)
    limit = default_memory(model) if memory is None else memory
    samples = sum(map(len, batches))
    for portion in portions(groups, reading.costs(), limit):
        yield portion, Calibration(_moments(reading, portion), samples, reading.model)


def _moments(reading: Reading, portion: Sequence[PrunableGroup]) -> dict[str, Moments]:
    """One pass over the data."""
    found = reading.read({a.tensor for g in portion for a in g.axes if a.role in READ})
    parts: dict[int, tuple[Part, ...]] = {}  # by what was summed: those who share it share these
    moments = {}
    for name, sums in found.items():
        layer = reading.layers[name]
        if not sums[0].count:
            continue
        if id(sums) not in parts:
            pairs = zip(layer.blocks, sums, strict=True)
            parts[id(sums)] = tuple(Part(columns_D, *one.finish()) for columns_D, one in pairs)
        norm = reading.norms.get(layer.path)
        moments[name] = Moments(name, parts[id(sums)], layer.width, sums[0].count, norm)
    return moments
