"""What tells one thing from another by content: digests of tensors, descriptions of the rest.

What measures plans is described by named parts ("dense weights", "reward", ...), each a short text
or a digest, so that two that differ can say in what.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import types
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prune_env.structure.rewrite import tensors_of

NUMERICS = 2
"""Of what a plan measures. To be raised whenever the same plan of the same task measures other
numbers than before, so that journals of the code before are refused."""

Identity = Mapping[str, str]
"""What something is made of, by the name of the part: a short text, or a digest."""

OURS = ("prune_env", "agents", "experiments")
"""Packages whose functions are known by name: `NUMERICS` says when what they compute changed."""
LONGEST = 60
"""Characters of a description that is shown; longer ones become digests."""
DIGEST = "sha256:"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Twenty hex digits that change when a name, shape, kind or bit of a value does."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:20]


def fingerprint(model: nn.Module) -> str:
    """Digest of a network's weights and statistics; integers are left out, as they may count."""
    return digest({name: t for name, t in tensors_of(model).items() if t.is_floating_point()})


def joined_identity(parts: Identity) -> str:
    """Sixteen hex digits for all parts together."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()[:16]


def identity_of(**values: Any) -> dict[str, str]:
    """The identity of something made of these values; underscores become spaces."""
    return {name.replace("_", " "): described(value) for name, value in values.items()}


def described(value: Any) -> str:
    """A text that is equal for equal content, in every process; a digest where it would be long.

    Tensors, arrays, networks, files, dataclasses, containers and loaders of tensors are told by
    content; functions by their name, what they enclose and, where they are not ours, their code.
    Other objects are told by the name of their type alone, unless they have an attribute
    `fingerprint` (a text, or a mapping of names to texts) that says what they are. What
    `functools.wraps` a function counts as that function.
    """
    text = _described(value, ())
    return text if len(text) <= LONGEST else DIGEST + hashlib.sha256(text.encode()).hexdigest()[:20]


def differences(found: Identity, wanted: Identity) -> str:
    """In what they differ, in words; empty if they do not."""
    names = [*wanted, *(name for name in found if name not in wanted)]
    return "; ".join(
        _difference(name, found.get(name, "none"), wanted.get(name, "none"))
        for name in names
        if found.get(name) != wanted.get(name)
    )


def _difference(name: str, found: str, wanted: str) -> str:
    hidden = found.startswith(DIGEST) or wanted.startswith(DIGEST)
    return f"{name} differ" if hidden else f"{name} {found} there, {wanted} now"


def _described(value: Any, above: tuple[int, ...]) -> str:
    if id(value) in above:
        return "itself"
    above = (*above, id(value))

    def inner(part: Any) -> str:
        return _described(part, above)

    said = getattr(value, "fingerprint", None)
    if isinstance(said, (str, Mapping)):
        return said if isinstance(said, str) else DIGEST + joined_identity(said)
    for kinds, describe in _KINDS:
        if isinstance(value, kinds):
            return str(describe(value, inner))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [f.name for f in dataclasses.fields(value) if f.repr and f.name[0] != "_"]
        fields = ", ".join(f"{name}={inner(getattr(value, name))}" for name in shown)
        return f"{type(value).__qualname__}({fields})"
    return _named(value if isinstance(value, type) else type(value))


def _named(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _function(value: Any, inner: Any) -> str:
    if hasattr(value, "__wrapped__"):
        return str(inner(value.__wrapped__))
    enclosed = [_content(cell) for cell in value.__closure__ or ()]
    given = [*enclosed, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
    ours = str(value.__module__).partition(".")[0] in OURS
    name = value.__name__ if ours else f"{_named(value)}#{_code(value.__code__)}"
    return f"{name}({', '.join(map(inner, given))})" if given else name


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _code(code: types.CodeType) -> str:
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    content = repr((code.co_code, constants, code.co_names))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _network(value: nn.Module, inner: Any) -> str:
    return f"{_named(type(value))} {joined_identity({'': str(value)})} {digest(tensors_of(value))}"


def _file(value: Path, inner: Any) -> str:
    if not value.is_file():
        return str(value)
    return DIGEST + hashlib.sha256(value.read_bytes()).hexdigest()[:20]


def _loader(value: DataLoader[Any], inner: Any) -> str:
    return f"batches of {value.batch_size} of {inner(value.dataset)}"


_KINDS: tuple[tuple[Any, Any], ...] = (
    ((type(None), bool, int, float, complex, bytes, np.generic), lambda value, inner: repr(value)),
    (str, lambda value, inner: value),
    (Tensor, lambda value, inner: digest({"": value})),
    (np.ndarray, lambda value, inner: digest({"": torch.from_numpy(np.ascontiguousarray(value))})),
    (nn.Module, _network),
    (Path, _file),
    (
        Mapping,
        lambda value, inner: str(sorted((str(k), inner(v)) for k, v in value.items())),
    ),
    (Set, lambda value, inner: str(sorted(map(inner, value)))),
    (Sequence, lambda value, inner: f"[{', '.join(map(inner, value))}]"),
    (types.FunctionType, _function),
    (types.MethodType, lambda value, inner: f"{inner(value.__self__)}.{value.__name__}"),
    (types.BuiltinFunctionType, lambda value, inner: _named(value)),
    (
        functools.partial,
        lambda value, inner: inner([value.func, *value.args, *value.keywords.items()]),
    ),
    (TensorDataset, lambda value, inner: inner(value.tensors)),
    (DataLoader, _loader),
)
"""What is told by content -> how; the first that fits. Add a kind here."""
