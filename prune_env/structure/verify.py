"""No discovered group is believed: masked must equal compact on random inputs and keep sets.

The check runs in float64 on a copy whose parameters and statistics are disturbed, so that a fresh
network (all normalisation at 0 and 1, layer scales of 1e-6) cannot hide a misaligned channel.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prune_env.progress import progress
from prune_env.structure.blocks import unrouted
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import map_tensors
from prune_env.structure.rewrite import Kept, Layout, assign, places_of, tensors_of
from prune_env.structure.scenes import Scene
from prune_env.structure.trace import tensors_in

TOLERANCE = 1e-6
"""Largest difference allowed, relative to the largest output; float64 leaves 1e-12."""


def verify(
    model: nn.Module, scenes: Sequence[Scene], groups: Sequence[PrunableGroup], seed: int = 0
) -> tuple[PrunableGroup, ...]:
    """Mark every live group as verified, or freeze it with what went wrong.

    All groups are cut together first; only when that fails are they added one by one.

    Args:
        model: the dense network in eval mode; it is copied.
        scenes: ways to run it, a plain one first.
        groups: groups of this model; frozen ones pass through.
        seed: of the random weights, inputs and keep sets.
    """
    live = [group for group in groups if not group.frozen]
    faults: dict[str, str] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = Probe(model, scenes[0])
        with progress("verify groups", len(scenes), "passes", passing=True) as bar:
            for scene in scenes:
                probe, trials = probe.at(scene), 1 if scene.name else 2
                left = [group for group in live if group.name not in faults]
                if probe.fault(left, trials):
                    faults |= _find_faults(probe, left, trials)
                bar.step(scene.name)
    return tuple(_judged(group, faults) for group in groups)


def _find_faults(probe: Probe, groups: Sequence[PrunableGroup], trials: int) -> dict[str, str]:
    accepted: list[PrunableGroup] = []
    faults: dict[str, str] = {}
    with progress("find what fails", len(groups), "groups", passing=True) as bar:
        for group in groups:
            fault = probe.fault([*accepted, group], trials)
            if fault:
                faults[group.name] = fault
            else:
                accepted.append(group)
            bar.step(group.name)
    return faults


def _judged(group: PrunableGroup, faults: Mapping[str, str]) -> PrunableGroup:
    if group.frozen:
        return group
    fault = faults.get(group.name, "")
    return replace(group, frozen=fault, verified=not fault)


class Probe:
    """A disturbed float64 copy of the model, cut and restored for every question.

    Args:
        model: the dense network in eval mode; it is copied.
        scene: a plain way to run it.
    """

    def __init__(self, model: nn.Module, scene: Scene) -> None:
        self.model = copy.deepcopy(model).double()
        self.tolerance, self._cast = TOLERANCE, _double
        try:
            _played(self._cast_of(scene), self.model)
        except Exception:  # code that fixes float32: check in float32 instead
            self.model = copy.deepcopy(model)
            self.tolerance, self._cast = 1e-3, _same
        self.places = places_of(self.model)
        _disturb(self.model)
        self.scene = self._cast_of(scene)

    def at(self, scene: Scene) -> Probe:
        """The same copy in another scene."""
        other = copy.copy(self)
        other.scene = self._cast_of(scene)
        return other

    def _cast_of(self, scene: Scene) -> Scene:
        return replace(scene, inputs=map_tensors(self._cast, scene.inputs))

    def fault(self, groups: Sequence[PrunableGroup], trials: int = 2) -> str:
        """What goes wrong when all `groups` are cut at random; empty when nothing does.

        In scenes other than plain ones only that the cut network runs counts, where random numbers
        were drawn or values are not finite, and nothing where this copy does not run.
        """
        layout = Layout(groups)
        tensors = tensors_of(self.model)
        for _ in range(trials if groups else 0):
            kept = {group.name: _random_units(group) for group in groups}
            drawn = torch.random.get_rng_state()
            try:
                masked = self._run(layout.mask(tensors, kept), {}, layout, kept)
            except Exception:
                if self.scene.name:
                    return ""
                raise
            drawn_none = torch.equal(drawn, torch.random.get_rng_state())
            try:
                shrunk = layout.shrink(tensors, kept)
                compact = self._run(shrunk, layout.sizes(kept), layout)
            except Exception as error:  # whatever the user's forward raises on new widths
                first = str(error).strip().partition("\n")[0]
                return f"compact network fails{self._when}: {first[:90]}"
            if self.scene.name and not (drawn_none and _finite(masked)):
                continue
            difference = _difference(masked, compact)
            if not difference <= self.tolerance:
                return f"masked and compact differ by {difference:.0e}{self._when}"
        return ""

    @property
    def _when(self) -> str:
        return f" {self.scene.name}" if self.scene.name else ""

    def _run(
        self,
        tensors: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        layout: Layout,
        masked: Kept | None = None,
    ) -> list[Tensor]:
        dense = tensors_of(self.model)
        dense = {name: dense[name] for name in tensors}
        whole = layout.sizes({}) if sizes else {}
        assign(self.model, tensors, sizes, self.places)
        try:
            groups = tuple(layout.groups.values())
            stage = self.scene.stage(self.model)
            with unrouted(stage, groups, masked or {}):
                return _played(self.scene, stage)
        finally:
            assign(self.model, dense, whole, self.places)


def _played(scene: Scene, stage: nn.Module) -> list[Tensor]:
    """What a scene returns in floating point."""
    found = tensors_in(scene.play(stage))
    return [tensor for tensor in found if tensor.is_floating_point()]


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _disturb(model: nn.Module) -> None:
    """Make every channel different; variances must not become negative, so neither does any vector
    without negative entries (a variance is 0 where a channel is dead)."""
    with torch.no_grad():
        for tensor in tensors_of(model).values():
            if tensor.is_floating_point():
                noise = 0.2 * (tensor.abs().mean() + 0.05) * torch.randn_like(tensor)
                positive = tensor.ndim == 1 and bool((tensor >= 0).all())
                tensor.add_(noise.abs() if positive else noise)


def _random_units(group: PrunableGroup) -> Tensor:
    """Between a quarter and all but one of the units, so that signals survive a deep network."""
    low = max(min(1, group.units - 1), group.min_keep, group.units // 4)
    count = int(torch.randint(low, max(low + 1, group.units), ()))
    return torch.randperm(group.units)[:count].sort().values


def _difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel():
            scale = a.detach().abs().max().clamp(min=1e-12)
            worst = max(worst, float((a - b).detach().abs().max() / scale))
    return worst
