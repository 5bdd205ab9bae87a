"""Layers of which a plan left nothing: taken out, and the others counted from 0 again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from prune_env.structure.rewrite import tensors_of

Dropped = Mapping[str, tuple[int, tuple[int, ...]]]
"""By path of a list of layers: how long it is, and the numbers of those with nothing left."""


def dropped_layers(small: nn.Module) -> Dropped:
    """Layers whose every tensor is empty, by the list that holds them."""
    sizes: dict[str, list[list[int]]] = {
        path: [[t.numel() for t in tensors_of(layer).values()] for layer in module]
        for path, module in small.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    found = {
        path: (len(layers), tuple(n for n, held in enumerate(layers) if held and not any(held)))
        for path, layers in sizes.items()
    }
    return {path: entry for path, entry in found.items() if entry[1]}


def renumbered(values: Mapping[str, Tensor], dropped: Dropped) -> dict[str, Tensor]:
    """Tensors under the names they have in a network without the dropped layers."""
    result = dict(values)
    for path, (length, gone) in dropped.items():
        stay = [number for number in range(length) if number not in gone]
        new = {f"{path}.{old}.": f"{path}.{place}." for place, old in enumerate(stay)}
        for number in range(length):
            prefix = f"{path}.{number}."
            for name in [name for name in result if name.startswith(prefix)]:
                value = result.pop(name)
                if prefix in new:
                    result[new[prefix] + name.removeprefix(prefix)] = value
    return result


def shallower(config: Any, dropped: Dropped) -> Iterator[Any]:
    """Configs in which some number that is a list's length counts without its dropped layers.

    What the config lists for every layer loses those entries too.
    """
    if not dropped:
        yield copy.deepcopy(config)
        return
    (_, (length, gone)), *others = dropped.items()
    for name, value in config.to_dict().items():
        if type(value) is int and value == length:
            smaller = copy.deepcopy(config)
            setattr(smaller, name, length - len(gone))
            for key, listed in config.to_dict().items():
                if isinstance(listed, list) and len(listed) == length:
                    setattr(smaller, key, [e for n, e in enumerate(listed) if n not in gone])
            yield from shallower(smaller, dict(others))
