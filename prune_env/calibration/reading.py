"""Passes over the dense network that sum what some of its layers read."""

from __future__ import annotations

import contextlib
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.calibration.columns import columns_of, flattened, has_columns
from prune_env.calibration.portions import READ, blocks_of
from prune_env.calibration.sums import Sums, require_finite_sum
from prune_env.fingerprint import fingerprint
from prune_env.progress import progress
from prune_env.quality.batches import Batch, take_batches
from prune_env.quality.norms import norms_behind
from prune_env.quality.padding import Positions
from prune_env.structure.copies import sharing
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import Inputs, call_model
from prune_env.structure.rewrite import places_of
from prune_env.structure.weights import multiplies_transposed


@dataclass(frozen=True, eq=False)
class Layer:
    """A consumer: its path in the network and how its columns are cut into blocks."""

    path: str
    width: int
    blocks: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Reading:
    """A network ready to be read from.

    Attributes:
        dense: a copy in eval mode that shares the weights.
        batches: calibration data.
        layers: consumers by the state_dict key of their weight.
        norms: see `norms_behind`.
        calls: paths of consumers in the order of their calls.
        leader: by path, the first path that reads the very same tensors (itself if alone).
        positions, seed: see `calibrate`.
        model: fingerprint of the network.
    """

    dense: nn.Module
    batches: Sequence[Batch]
    layers: Mapping[str, Layer]
    norms: Mapping[str, str]
    calls: tuple[str, ...]
    leader: Mapping[str, str]
    positions: int | None
    seed: int
    model: str

    @staticmethod
    def of(
        model: nn.Module,
        batches: Sequence[Batch],
        groups: Sequence[PrunableGroup],
        limit: int,
        positions: int | None,
        seed: int,
    ) -> Reading:
        """Find the consumers of `groups` and try the network on two samples.

        Args:
            limit: columns of a covariance.

        Raises:
            ModelError: the model cannot be copied.
        """
        dense = sharing(model)
        layers = _readable(dense, groups, limit)
        paths = [layer.path for layer in layers.values()]
        inputs = take_batches(batches[:1], 2)[0].inputs
        norms = norms_behind(sharing(model), paths, inputs)
        calls, leader = _tried(dense, tuple(layers.values()), inputs)
        mark = fingerprint(model)
        return Reading(dense, batches, layers, norms, calls, leader, positions, seed, mark)

    def costs(self) -> dict[str, dict[int, int]]:
        """By state_dict key, bytes of the covariances by a number of their own, see `portions`."""
        first = {layer.path: number for number, layer in enumerate(self.layers.values())}
        return {
            name: {first[self.leader[layer.path]]: sum(8 * len(b) ** 2 for b in layer.blocks)}
            for name, layer in self.layers.items()
        }

    def read(self, tensors: set[str]) -> dict[str, tuple[Sums, ...]]:
        """Sums of each block of these consumers; those that read the same tensors share them.

        Raises:
            ModelError: NaN or infinite activations; names the layer.
        """
        paths = {name: layer.path for name, layer in self.layers.items() if name in tensors}
        among = set(paths.values())
        first: dict[str, str] = {}
        for path in self.leader:  # the first one that is asked for leads the others
            if path in among:
                first.setdefault(self.leader[path], path)
        leader = {path: first[self.leader[path]] for path in among}
        try:
            found = self._pass(leader)
        except _Apart:  # they did not on other samples
            found = self._pass({path: path for path in among})
        return {name: found[path] for name, path in paths.items()}

    def _pass(self, leader: Mapping[str, str]) -> dict[str, tuple[Sums, ...]]:
        layers = {layer.path: layer for layer in self.layers.values()}
        sums = {path: self._sums(layers[path]) for path in set(leader.values())}
        hooks = _Hooks(sums, leader, self._last(leader), self.positions, self.seed)
        handles = [
            self.dense.get_submodule(path).register_forward_pre_hook(hooks.of(path))
            for path in leader
        ]
        try:
            shown = progress("calibrate", len(self.batches), "batches", passing=True)
            with torch.no_grad(), shown as bar:
                for batch in self.batches if leader else ():
                    hooks.run(self.dense, batch)
                    bar.step()
        finally:
            for handle in handles:
                handle.remove()
        return {path: sums[first] for path, first in leader.items()}

    def _sums(self, layer: Layer) -> tuple[Sums, ...]:
        order_D = flattened(self.dense.get_submodule(layer.path))
        return tuple(Sums(layer.path, order_D[columns_D]) for columns_D in layer.blocks)

    def _last(self, paths: Mapping[str, str]) -> tuple[str, int]:
        """The layer called last and how often; none if not all were called."""
        calls = [path for path in self.calls if path in paths]
        if not calls or set(calls) != set(paths):
            return "", 0
        return calls[-1], calls.count(calls[-1])


class _Enough(Exception):
    """Nothing behind this layer is asked for."""


class _Apart(Exception):
    """Layers that shared their input once did not this time."""


class _Hooks:
    """What happens in front of the layers during a pass."""

    def __init__(
        self,
        sums: Mapping[str, Sequence[Sums]],
        leader: Mapping[str, str],
        last: tuple[str, int],
        positions: int | None,
        seed: int,
    ) -> None:
        self._sums, self._leader, self._last, self._positions = sums, leader, last, positions
        # A draw of its own for every layer, so that it does not matter which others are read.
        self._generators = {
            path: torch.Generator().manual_seed(zlib.crc32(f"{seed} {path}".encode()))
            for path in sums
        }
        self._held: dict[str, tuple[Tensor, int]] = {}
        self._called: dict[str, int] = {}
        self._data: Positions = ()

    def run(self, model: nn.Module, batch: Batch) -> None:
        """One batch."""
        self._called, self._data = dict.fromkeys(self._leader, 0), batch.positions
        with contextlib.suppress(_Enough):
            call_model(model, batch.inputs)
        self._held.clear()
        if any(self._called[path] != self._called[first] for path, first in self._leader.items()):
            raise _Apart

    def of(self, path: str) -> Any:
        """The hook in front of the layer at `path`."""
        leads = path in self._sums

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._called[path] += 1
            if leads:
                self._add(path, module, inputs[0])
            else:
                held, version = self._held.get(self._leader[path], (None, 0))
                if held is not inputs[0] or version != inputs[0]._version:
                    raise _Apart
            if (path, self._called[path]) == self._last:
                raise _Enough

        return hook

    def _add(self, path: str, module: nn.Module, x: Tensor) -> None:
        self._held[path] = x, x._version
        with torch.inference_mode(False), torch.no_grad():  # whatever mode the network runs in
            draw = self._positions, self._generators[path]
            columns_ND = columns_of(module, x, *draw, self._data)
            require_finite_sum(path, columns_ND if self._data else x)  # padding may hold anything
            for one in self._sums[path]:
                one.add(columns_ND)


def _tried(
    dense: nn.Module, layers: Sequence[Layer], inputs: Inputs
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Paths in the order of their calls, and for each the first that reads the same tensors."""
    calls: list[str] = []
    paths = [layer.path for layer in layers]
    whole = {layer.path for layer in layers if len(layer.blocks) == 1}
    read: dict[str, list[tuple[Tensor, int]]] = {path: [] for path in paths}

    def hook_of(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls.append(path)
            read[path].append((inputs[0], inputs[0]._version))

        return hook

    handles = [dense.get_submodule(p).register_forward_pre_hook(hook_of(p)) for p in paths]
    with torch.no_grad():
        call_model(dense, inputs)
    for handle in handles:
        handle.remove()
    first: dict[tuple[Any, ...], str] = {}
    leader = {}
    for path in sorted(paths, key=lambda p: calls.index(p) if p in calls else len(calls)):
        module = dense.get_submodule(path)
        linear = isinstance(module, nn.Linear) or multiplies_transposed(module)
        plain = linear and path in whole and len(read[path]) == 1
        key = tuple((id(x), version) for x, version in read[path]) if plain else (path,)
        leader[path] = first.setdefault(key, path)
    return tuple(calls), leader


def _readable(model: nn.Module, groups: Sequence[PrunableGroup], limit: int) -> dict[str, Layer]:
    """The layers with `in` or `weight` axes whose input columns are collected."""
    wanted = {axis.tensor for group in groups for axis in group.axes if axis.role in READ}
    places, layers = places_of(model), {}
    for name in sorted(wanted & places.keys()):
        ((module, leaf), *others) = places[name]
        if others or leaf != "weight" or not has_columns(module):
            continue
        width, path = len(flattened(module)), name.rpartition(".")[0]
        kernel = module.get_parameter("weight")[0, 0].numel()
        blocks = blocks_of(groups, name, width, kernel, limit)
        if len(blocks) != 1 or len(blocks[0]) != width:
            warnings.warn(
                f"'{path}' has {width} input columns, too wide for their covariance (limit "
                f"{limit}); it is repaired in {len(blocks)} blocks that do not know of each other.",
                RuntimeWarning,
                stacklevel=6,
            )
        if blocks:
            layers[name] = Layer(path, width, blocks)
    return layers
