"""Pruned networks as folders that the transformers library loads by itself.

Its configs hold one width for all layers. A plan that removes as much from every layer fits a
smaller config (`export_pretrained`); any plan fits the original one with zeros in place of what was
removed (`export_padded`), which saves nothing but runs everywhere. Plans in between keep their
gains in our own format: `prune_env.save`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.deploy.configs import config_of
from prune_env.deploy.layers import dropped_layers, renumbered, shallower
from prune_env.deploy.reading_back import agree, require_free, write_checked
from prune_env.errors import ModelError, PlanError
from prune_env.plan.plan import PruningPlan
from prune_env.structure.blocks import choice_biases, gone_along, routers
from prune_env.structure.inputs import Inputs
from prune_env.structure.rewrite import Layout, tensors_of

Shapes = Mapping[str, tuple[int, ...]]
Scale = tuple[str, int]
"""A number of a config and its new value."""

TOGETHER = 4
"""Numbers of a config that are changed together at most: heads of two kinds, neurons, experts."""
NEVER = -0.5
"""Of the largest number of a type: the bias of what must not be chosen."""


def export_pretrained(
    small: nn.Module,
    plan: PruningPlan,
    folder: str | Path,
    example_inputs: Inputs | None = None,
) -> Path:
    """Write a pruned network as a plain `from_pretrained` folder with a smaller config.

    The config is found, not looked up; see `fitting_config`. Layers of which nothing is left are
    taken out, and the others count from 0 again. The folder is read back and run beside `small`
    before it is put in place. Its files are the library's own, so they carry no checksum of ours.

    Args:
        small: what `compact` made with `plan`, fine-tuned or not.
        plan: keeps as much of every layer that it keeps at all.
        folder: made if missing; holds no model yet.
        example_inputs: one batch to compare the two networks on; None: the library's dummy ids.

    Raises:
        ModelError: the model carries no config, or does not run on the inputs.
        PlanError: no config describes `small`; names the first tensor that differs.
        RunError: the folder cannot be written, or holds a model.
    """
    require_free(folder)
    config = fitting_config(small, plan, example_inputs)
    values = renumbered(_values(small), dropped_layers(small))
    return write_checked(small, config, values, folder, _inputs(small, example_inputs))


def export_padded(
    small: nn.Module,
    plan: PruningPlan,
    folder: str | Path,
    example_inputs: Inputs | None = None,
) -> Path:
    """Write a pruned network as a `from_pretrained` folder of the dense shape, padded by zeros.

    Computes what `small` computes, at the cost of the dense network. Units that are chosen, not
    read, get a bias that no choice falls on.

    Args:
        small: what `compact` made with `plan`, fine-tuned or not.
        plan: any plan.
        folder: made if missing; holds no model yet.
        example_inputs: one batch to compare the two networks on; None: the library's dummy ids.

    Raises:
        ModelError: the model carries no config, or does not run on the inputs.
        PlanError: `small` was not made with `plan` (names the first tensor that differs), or what
            is left out can still be chosen in the dense shape.
        RunError: the folder cannot be written, or holds a model.
    """
    require_free(folder)
    config = copy.deepcopy(_config(small))
    shapes = _shapes_under(small, config)
    padded = _values(small)
    for name, places in _places(plan, shapes).items():
        if name not in padded or padded[name].numel() != places.numel():
            raise PlanError(_differs(name, padded, {name: tuple(places.shape)}))
        whole = padded[name].new_zeros(shapes[name])
        whole.view(-1)[places.reshape(-1).to(whole.device)] = padded[name].reshape(-1)
        padded[name] = whole
    _close_doors(plan, padded)
    return write_checked(small, config, padded, folder, _inputs(small, example_inputs))


def _close_doors(plan: PruningPlan, padded: Mapping[str, Tensor]) -> None:
    """Let no removed unit be chosen: a bias that decides the choice says never, in place.

    Raises:
        PlanError: units that are chosen were removed, and no bias of theirs decides.
    """
    kept = plan.indices()
    for group, router in routers(plan.groups, padded):
        biases, gone = choice_biases(group, padded), group.units - len(kept[group.name])
        if gone and not biases:
            raise PlanError(
                f"'{router}' chooses among the units of '{group.name}' and has no bias: in the "
                f"dense shape it would choose the {gone} that were removed, as zeros. Keep "
                "as many of them in every layer and use export_pretrained, or use prune_env.save."
            )
        for name in biases:
            never_E = gone_along(group, name, kept[group.name])
            padded[name][never_E] = NEVER * torch.finfo(padded[name].dtype).max


def _places(plan: PruningPlan, shapes: Shapes) -> dict[str, Tensor]:
    """For every tensor that units live in, where its elements lie in the dense one."""
    groups = [group for group in plan.groups if group.pattern.shrinks]
    names = {axis.tensor for group in groups for axis in group.axes if axis.role != "count"}
    missing = sorted(names - set(shapes))
    if missing:
        raise PlanError(f"the plan speaks of '{missing[0]}', which the config's model lacks.")
    numbered = {n: torch.arange(torch.Size(shapes[n]).numel()).reshape(shapes[n]) for n in names}
    kept = plan.indices()
    return Layout(groups).shrink(numbered, {group.name: kept[group.name] for group in groups})


def fitting_config(
    small: nn.Module, plan: PruningPlan, example_inputs: Inputs | None = None
) -> Any:
    """The config whose model has the shapes of `small` and computes the same.

    Whole numbers of the config are scaled by what the plan keeps of a group, one to `TOGETHER` of
    them at a time; layers of which nothing is left are no longer counted. Shapes alone do not
    decide (half the heads, or heads of half the width), so both networks are run.

    Raises:
        ModelError: the model carries no config, or does not run on the inputs.
        PlanError: there is none; names the first tensor that differs.
    """
    config, dropped = _config(small), dropped_layers(small)
    values = renumbered(_values(small), dropped)
    wanted = {name: tuple(tensor.shape) for name, tensor in values.items()}
    inputs, apart = None, []
    for base in shallower(config, dropped):
        found = _shapes_under(small, base)
        apart = _apart(wanted, found)
        inputs = _inputs(small, example_inputs) if apart or dropped else None
        if not apart and (inputs is None or _agree(small, base, values, inputs)):
            return base
        for scales in _sets(_scales(small, base, plan, set(apart))) if apart else ():
            scaled = _with(base, scales)
            fits = _shapes_under(small, scaled) == wanted
            if fits and inputs is not None and _agree(small, scaled, values, inputs):
                return scaled
    found = _shapes_under(small, config)
    apart = _apart(wanted, found)
    raise PlanError(
        f"{_differs(apart[0], values, found)} A config has one width for all layers, "
        "and no smaller one fits: use a plan that keeps as much of every layer, export_padded, or "
        "prune_env.save."
    )


def _scales(small: nn.Module, config: Any, plan: PruningPlan, apart: set[str]) -> list[Scale]:
    """Numbers of the config that, scaled, change nothing but tensors that must change.

    One that the model refuses on its own stays in: it may need another beside it.
    """
    dense = _shapes_under(small, config)
    ratios = {(len(plan.kept[g.name]), g.units) for g in plan.groups if g.pattern.shrinks}
    scales = [
        (name, value * kept // units)
        for name, value in config.to_dict().items()
        if type(value) is int and value > 1
        for kept, units in sorted(ratios)
        if 0 < kept < units and value * kept % units == 0
    ]
    result = []
    for scale in dict.fromkeys(scales):
        shapes = _shapes_under(small, _with(config, (scale,)))
        changed = set(_apart(dense, shapes))
        if not shapes or (changed and changed <= apart):
            result.append(scale)
    return result


def _sets(scales: Sequence[Scale]) -> Iterator[tuple[Scale, ...]]:
    for size in range(1, TOGETHER + 1):
        for chosen in combinations(scales, size):
            if len({name for name, _ in chosen}) == size:
                yield chosen


def _with(config: Any, scales: Sequence[Scale]) -> Any:
    scaled = copy.deepcopy(config)
    for name, value in scales:
        setattr(scaled, name, value)
    return scaled


def _inputs(small: nn.Module, given: Inputs | None) -> Inputs:
    inputs = getattr(small, "dummy_inputs", None) if given is None else given
    if inputs is None:
        raise ModelError(f"{type(small).__name__} has no dummy inputs. Give example_inputs.")
    return inputs


def _agree(small: nn.Module, config: Any, values: Mapping[str, Tensor], inputs: Inputs) -> bool:
    """Whether the config's model, with the weights of `small`, computes what `small` does."""
    with torch.random.fork_rng([]):
        model = type(small)(copy.deepcopy(config)).to(next(small.parameters()).detach())
    model.load_state_dict(dict(values))
    return agree(small, model, inputs)


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors_of(model).items()}


def _apart(wanted: Shapes, found: Shapes) -> list[str]:
    """Names of tensors that only one side has, or in another shape."""
    names = [*wanted, *(name for name in found if name not in wanted)]
    return [name for name in names if wanted.get(name) != found.get(name)]


def _differs(name: str, small: Mapping[str, Tensor], found: Shapes) -> str:
    shape = tuple(small[name].shape) if name in small else "absent"
    return (
        f"'{name}' is {shape} in the pruned network, {found.get(name, 'absent')} in the network "
        "that the config describes."
    )


def _shapes_under(small: nn.Module, config: Any) -> Shapes:
    """Shapes of the model's class under a config, on no device; none where it refuses."""
    try:
        with torch.device("meta"):
            model = type(small)(copy.deepcopy(config))
    except Exception:  # whatever numbers that do not fit each other run into
        return {}
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}


def _config(model: nn.Module) -> Any:
    config = config_of(model)
    if config is None:
        raise ModelError(
            f"{type(model).__name__} carries no config of the transformers library, so it cannot "
            "become a from_pretrained folder. Use prune_env.save."
        )
    return config
