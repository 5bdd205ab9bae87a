"""Single weights, N:M slots and blocks of weights as units: one group per weight matrix.

The grid is the matrix, outputs before inputs, whatever the order of the tensor's dims; a
convolution adds the dims of its kernel. Removed weights are zero and the tensor keeps its shape. So
what the cost of such a group says is theoretical: params, bytes and MACs of a format and a kernel
that skip zeros. `CostModel.effective` says what a dense format and kernel still pay.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from prune_env.errors import GroupError
from prune_env.structure.groups import Axis, PrunableGroup, Span
from prune_env.structure.patterns import NM, Pattern, PerRow, Unstructured
from prune_env.structure.rewrite import places_of


def weight_groups(
    model: nn.Module,
    kind: str = "unstructured",
    *,
    layers: Iterable[str] = ("*",),
    ignore: Iterable[str] = (),
    heads: Iterable[str] | None = None,
    levels_per_group: int = 64,
) -> tuple[PrunableGroup, ...]:
    """One group per weight matrix, named after its tensor, in the order of the modules.

    Linear layers, convolutions, and layers that multiply with a 2-D weight stored (inputs, outputs)
    are found; embeddings are not. Frozen come back: matrices shared with another layer, and output
    heads.

    Args:
        model: the dense network; not changed.
        kind: "unstructured" (single weights, over the whole matrix), "per_row" (as many of every
            row), "n:m" such as "2:4" (along the inputs), or "block:b" (b outputs x b inputs, a
            convolution's kernels whole).
        layers: names or globs of the layers wanted; the others are left out.
        ignore: names or globs of layers that are left out after all.
        heads: names of the output heads; None takes the model's `get_output_embeddings()` or,
            where it has none, the last such layer in the order of registration.
        levels_per_group: about how many levels single weights and blocks get.

    Raises:
        GroupError: unknown kind; a name that matches no layer; sizes that M or the block do not
            divide (names the layer and the size).
    """
    make, matrices = _kind_named(kind), _matrices(model)
    layers, ignore = tuple(layers), tuple(ignore)
    heads = None if heads is None else tuple(heads)
    for pattern in (*layers, *ignore, *(heads or ())):
        _require_match(pattern, matrices)
    reasons = _frozen(model, matrices, heads)
    groups = []
    for path, dims in matrices.items():
        if _matches(path, layers) and not _matches(path, ignore):
            tensor = f"{path}.weight".lstrip(".")
            shape = tuple(model.get_submodule(path).get_parameter("weight").shape)
            if path in reasons:
                grid = _Grid(Unstructured(levels_per_group), (1,) * len(dims))
            else:
                grid = make(path, tuple(shape[d] for d in dims), levels_per_group)
            groups.append(grid.group(tensor, shape, dims, reasons.get(path, "")))
    return tuple(groups)


@dataclass(frozen=True)
class _Grid:
    """How a matrix is divided: the pattern, the width of a unit along every dim, the fewest kept.

    `fewest` is a fraction of the units.
    """

    pattern: Pattern
    widths: tuple[int, ...]
    fewest: float = 0.0

    def group(
        self, tensor: str, shape: tuple[int, ...], dims: tuple[int, ...], frozen: str
    ) -> PrunableGroup:
        sizes = tuple(shape[d] for d in dims)
        grid = tuple(size // width for size, width in zip(sizes, self.widths, strict=True))
        index = tuple(Span(0, width) for width in self.widths)
        axis = Axis(tensor, dims, index, sizes, "weight")
        min_keep = round(self.fewest * math.prod(grid))
        return PrunableGroup(tensor, grid, (axis,), self.pattern, min_keep, frozen=frozen)


_Make = Callable[[str, tuple[int, ...], int], _Grid]
"""The grid of a layer, from its path, the sizes of its matrix and the levels wanted."""


def _unstructured(path: str, sizes: tuple[int, ...], levels: int) -> _Grid:
    return _Grid(Unstructured(levels), (1,) * len(sizes))


def _per_row(path: str, sizes: tuple[int, ...], levels: int) -> _Grid:
    return _Grid(PerRow(levels), (1,) * len(sizes))


def _n_of_m(n: int, m: int) -> _Make:
    def make(path: str, sizes: tuple[int, ...], levels: int) -> _Grid:
        _require_multiple(path, f"{n}:{m}", "inputs", sizes[1], m)
        return _Grid(NM(m), (1,) * len(sizes), n / m)

    return make


def _blocks(width: int) -> _Make:
    def make(path: str, sizes: tuple[int, ...], levels: int) -> _Grid:
        for what, size in zip(("outputs", "inputs"), sizes, strict=False):
            _require_multiple(path, f"block:{width}", what, size, width)
        return _Grid(Unstructured(levels), (width, width, *sizes[2:]))

    return make


def _kind_named(kind: str) -> _Make:
    numbers = [int(number) for number in re.findall(r"\d+", kind)]
    if kind in _PLAIN:
        return _PLAIN[kind]
    if re.fullmatch(r"\d+:\d+", kind) and 0 < numbers[0] < numbers[1]:
        return _n_of_m(*numbers)
    if re.fullmatch(r"block:\d+", kind) and numbers[0] > 0:
        return _blocks(*numbers)
    raise GroupError(
        f"there is no kind of weight group '{kind}'. Give 'unstructured', 'per_row', 'n:m' with "
        "n below m such as '2:4', or 'block:b' such as 'block:16'."
    )


def require_kind(kind: str) -> None:
    """Refuse a name that is no kind of weight group.

    Raises:
        GroupError: it is none; says what there is.
    """
    _kind_named(kind)


_PLAIN: dict[str, _Make] = {"unstructured": _unstructured, "per_row": _per_row}


def _require_multiple(path: str, kind: str, what: str, size: int, divisor: int) -> None:
    if size % divisor:
        raise GroupError(
            f"layer '{path}' has {size} {what}, not a multiple of {divisor}, so '{kind}' does not "
            f"fit it. Leave it out with ignore=('{path}',), or choose another kind for it."
        )


def _matrices(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """By path, the dims of every layer's weight in the order outputs, inputs, kernel."""
    found = {path: _dims(module) for path, module in model.named_modules()}
    return {path: dims for path, dims in found.items() if dims}


def _dims(module: nn.Module) -> tuple[int, ...]:
    """Outputs, inputs, kernel of a layer's weight; empty for a module that is no such layer."""
    weight: Any = module._parameters.get("weight")
    if weight is None or isinstance(weight, nn.parameter.UninitializedParameter):
        return ()
    if isinstance(module, nn.modules.conv._ConvNd):
        first = (1, 0) if module.transposed else (0, 1)
        return (*first, *range(2, weight.ndim))
    if isinstance(module, nn.Linear):
        return (0, 1)
    return (1, 0) if multiplies_transposed(module) else ()


def multiplies_transposed(module: nn.Module) -> bool:
    """Whether a leaf computes x @ weight (+ bias) with a 2-D weight: inputs before outputs.

    Seen on random vectors, not by name; GPT-2's projections are such layers.
    """
    weight: Any = module._parameters.get("weight")
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or list(module.children()):
        return False
    if not weight.is_floating_point() or weight.is_meta:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, len(weight), generator=generator).to(weight)
    try:
        with torch.no_grad():
            y = module.forward(x)  # not a call: hooks must not see the random vectors
            bias: Any = module._parameters.get("bias")
            expected = x @ weight + (0 if bias is None else bias)
    except Exception:  # a module that takes anything but a batch of vectors is no such layer
        return False
    return (
        isinstance(y, torch.Tensor)
        and y.shape == expected.shape
        and torch.allclose(y, expected, rtol=1e-3, atol=1e-5)
    )


def _frozen(
    model: nn.Module, matrices: dict[str, tuple[int, ...]], heads: Iterable[str] | None
) -> dict[str, str]:
    """Why layers cannot be pruned, by path."""
    places = places_of(model)
    paths = {id(module): path for path, module in model.named_modules()}
    reasons = dict.fromkeys(_heads(model, matrices) if heads is None else heads, "output head")
    for path in matrices:
        module = model.get_submodule(path)
        for other, leaf in places[f"{path}.weight".lstrip(".")]:
            if other is not module:
                reasons[path] = f"tied to '{paths[id(other)]}.{leaf}'"
    return reasons


def _heads(model: nn.Module, matrices: dict[str, tuple[int, ...]]) -> list[str]:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return [p for p in matrices if model.get_submodule(p) is head] or list(matrices)[-1:]


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, p) or fnmatchcase(f"{path}.weight", p) for p in patterns)


def _require_match(pattern: str, matrices: dict[str, tuple[int, ...]]) -> None:
    if not any(_matches(path, (pattern,)) for path in matrices):
        near = difflib.get_close_matches(pattern, matrices, n=3, cutoff=0.3) or list(matrices)[:3]
        raise GroupError(
            f"layer pattern '{pattern}' matches none of the {len(matrices)} layers with a weight "
            f"matrix. Nearest: {', '.join(near)}."
        )
