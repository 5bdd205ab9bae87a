"""How outputs and targets are read: which part is meant, on which scale, beside which targets.

Whatever measures or tunes a network reads it through one `Output`; how it is found: choosing.py.

Legend: B samples, T positions, K classes, N predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.errors import ConfigError, ModelError
from prune_env.quality.batches import Batch
from prune_env.quality.shift import one_ahead
from prune_env.structure.blame import place_of
from prune_env.structure.entry import why_not
from prune_env.structure.inputs import call_model, map_tensors

TAKES = "Does the loader give what the model takes?"


def _log_of(probabilities: Tensor) -> Tensor:
    return probabilities.float().clamp_min(torch.finfo(torch.float32).tiny).log()


def _logit_of(probabilities: Tensor) -> Tensor:
    return probabilities.float().logit(eps=1e-7)


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,  # of which logarithms of probabilities are one kind
    "probabilities": _log_of,
    "sigmoid": _logit_of,
}
"""What the last layer gives -> logits."""


@dataclass(frozen=True)
class Output:
    """Where a network's predictions stand. `Output()` is plain logits (..., K), nothing guessed.

    Attributes:
        part: keys or indices that lead to them, joined by dots ("1", "heads.boxes"); empty where
            the output is one tensor or says itself what its `logits` are.
        classes: the dimension of the classes: -1, or 1 as `torch.nn.CrossEntropyLoss` has them.
        scale: a name in `SCALES`.
        ahead: whether targets are the tokens read and must be moved one position ahead.
        tensor: whether one tensor is meant; if not, everything, or everything in `part`.
    """

    part: str = ""
    classes: int = -1
    scale: str = "logits"
    ahead: bool = False
    tensor: bool = True

    def of(self, raw: Any) -> Any:
        """The outputs in what a network returned, classes last.

        Raises:
            ModelError: they are not there.
        """
        return self.logits(raw) if self.tensor else within(raw, self.part)

    def beside(self, batch: Batch) -> Any:
        """The targets that stand beside them; none at positions that are no data."""
        if not self.ahead:
            return batch.targets
        return Batch(batch.inputs, one_ahead(batch.targets)).targets

    def logits(self, raw: Any) -> Tensor:
        """The logits (..., K) in what a network returned.

        Raises:
            ModelError: they are not there.
        """
        return SCALES[self.scale](pick(raw, self.part).movedim(self.classes, -1))


LOGITS = Output()
"""One tensor, or what is called `logits`, taken as it is."""

AUTO = "auto"
"""Nothing is said: what is clear is taken, and asked for where it is not."""
MOST_PARTS = 1000

Said = str | int | Output
"""What a user says of the outputs: a part by name or index, or all there is to know."""


def checked(said: object) -> str | Output:
    """What was said, indices as text.

    Raises:
        ConfigError: it is neither a name, nor an index, nor an `Output`.
    """
    if isinstance(said, Output):
        return said
    whole = isinstance(said, int) and not isinstance(said, bool) and 0 <= said < MOST_PARTS
    keys = str(said).split(".") if isinstance(said, str) or whole else [""]
    if all(key.isidentifier() or key.isdecimal() for key in keys):
        return str(said)
    raise ConfigError(
        f"output is {said!r}; give the name or the index of the part of the model's outputs "
        "that is its logits, such as 'scores' or 0."
    )


def run(model: nn.Module, batch: Batch, where: object, cure: str = TAKES) -> Any:
    """What `model` gives for a batch.

    Raises:
        ModelError: it fails; names the layer, and `cure`.
    """
    try:
        return call_model(model, batch.inputs)
    except ModelError:
        raise
    except Exception as error:
        first = f"{str(error).strip().partition(chr(10))[0]} {place_of(error)}".strip()
        raise ModelError(
            f"{type(model).__name__} cannot run a batch of shape {shapes_of(batch.inputs)} "
            f"({where}): {first}. {why_not(model, batch.inputs, cure)}"
        ) from error


def within(raw: Any, part: str) -> Any:
    """What `part` leads to; one tensor alone is what is meant, whatever its name."""
    found = raw
    for key in part.split(".") if part else ():
        if not isinstance(found, Tensor):
            found = _entry(found, key, part, raw)
    return found


def pick(raw: Any, part: str) -> Tensor:
    """The tensor that `part` leads to."""
    found = within(raw, part)
    if not isinstance(found, Tensor):
        found = named_logits(found)
    if isinstance(found, Tensor):
        return found
    raise ModelError(
        f"the model returned {listed(raw)} without logits. Say which part they are "
        f"({choices(raw)}), or return a tensor, or an object or dict with 'logits'."
    )


def _entry(value: Any, key: str, part: str, raw: Any) -> Any:
    parts = parts_of(value)
    if key in parts:
        return parts[key]
    raise ModelError(f"there is no '{part}' in what the model returned: {listed(raw)}.")


def named_logits(value: Any) -> Any:
    return value.get("logits") if isinstance(value, Mapping) else getattr(value, "logits", None)


def parts_of(value: Any) -> dict[str, Any]:
    """What an output holds, by name or index."""
    if isinstance(value, Mapping):
        return {str(name): entry for name, entry in value.items()}
    named = dict(getattr(value, "__dict__", {}))
    if isinstance(value, tuple | list):
        named |= {name: getattr(value, name) for name in getattr(value, "_fields", ())}
        named |= {str(index): entry for index, entry in enumerate(value)}
    return named


def shapes_of(inputs: Any) -> str:
    shapes: list[str] = []

    def note(tensor: Tensor) -> Tensor:
        shapes.append(str(tuple(tensor.shape)))
        return tensor

    map_tensors(note, inputs)
    return ", ".join(shapes)


def listed(raw: Any) -> str:
    held = [f"{name} {_kind(entry)}" for name, entry in parts_of(raw).items()]
    return f"a {type(raw).__name__}" + (f" of {', '.join(held)}" if held else "")


def _kind(entry: Any) -> str:
    return str(tuple(entry.shape)) if isinstance(entry, Tensor) else type(entry).__name__


def choices(raw: Any) -> str:
    names = [name for name, entry in parts_of(raw).items() if isinstance(entry, Tensor)]
    shown = [name if name.isdecimal() else repr(name) for name in names]
    return " or ".join(f"output={name}" for name in shown) or "output=..."
