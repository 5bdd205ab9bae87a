"""How outputs and targets are read: which part is the logits, on which scale, beside which targets.

Whatever measures or tunes a network reads it through one `Output`. It is found once, from what the
dense network gives on data, and refused where it would be a guess.

Legend: B samples, T positions, K classes, N predictions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.errors import ConfigError, DataError, ModelError
from prune_env.quality.batches import Batch
from prune_env.quality.last_op import ends_in_sigmoid
from prune_env.quality.padding import IGNORED
from prune_env.quality.shift import labels_of_inputs, one_ahead, token_ids
from prune_env.structure.blame import place_of
from prune_env.structure.entry import why_not
from prune_env.structure.inputs import call_model, map_tensors

_log = logging.getLogger(__name__)
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""How far from one a row of probabilities may sum, by dtype; the halved ones stray further."""


TAKES = "Does the loader give what the model takes?"


def _log_of(probabilities: Tensor) -> Tensor:
    return probabilities.float().clamp_min(torch.finfo(torch.float32).tiny).log()


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,  # of which logarithms of probabilities are one kind
    "probabilities": _log_of,
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
    """

    part: str = ""
    classes: int = -1
    scale: str = "logits"
    ahead: bool = False

    def logits(self, raw: Any) -> Tensor:
        """The logits (..., K) in what a network returned.

        Raises:
            ModelError: they are not there.
        """
        return SCALES[self.scale](_pick(raw, self.part).movedim(self.classes, -1))

    def read(self, batch: Batch) -> Batch:
        """The same batch with the targets that stand beside the predictions."""
        return Batch(batch.inputs, one_ahead(batch.targets)) if self.ahead else batch

    def labelled(self, raw: Any, targets: Tensor) -> Tensor:
        """The logits of predictions that have a target, float32 (N, K)."""
        logits = self.logits(raw).flatten(0, -2)
        return logits[targets.flatten() != IGNORED].float()


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
            f"{type(model).__name__} cannot run a batch of shape {_shapes(batch.inputs)} "
            f"({where}): {first}. {why_not(model, batch.inputs, cure)}"
        ) from error


def find_output(
    model: nn.Module, batches: Sequence[Batch], raws: Iterable[Any], said: Said = AUTO
) -> tuple[Output, list[Tensor]]:
    """How a network is read, and its logits (..., K) for every batch.

    Args:
        model: the network, in eval mode.
        batches: data.
        raws: what the network returned for each of them.
        said: what the user says; an `Output` is taken as it is.

    Raises:
        ConfigError: `said` is malformed.
        ModelError: the part is not there, or several may be meant.
        DataError: the targets do not fit the logits, or are what the network reads.
    """
    known, tensors = checked(said), []
    part = known.part if isinstance(known, Output) else None
    for batch, raw in zip(batches, raws, strict=True):
        part = _part_of(raw, batch.targets, str(known)) if part is None else part
        tensors.append(_pick(raw, part))
    if isinstance(known, Output):
        output = known
    else:
        classes = _classes_of(batches, tensors)
        scale = _scale_of(model, batches, [tensor.movedim(classes, -1) for tensor in tensors])
        ahead = classes == -1 and labels_of_inputs(model, batches[0], tensors[0])
        output = Output(part or "", classes, scale, ahead)
    return output, [SCALES[output.scale](t.movedim(output.classes, -1)) for t in tensors]


def require_fit(logits: Tensor, targets: Tensor, where: object) -> None:
    """Check that targets are class numbers of these logits (..., K).

    Raises:
        DataError: says what is measured and what was found.
    """
    classes = logits.shape[-1]
    if logits.ndim < 2 or logits.shape[:-1] != targets.shape:
        raise DataError(
            f"{where}: targets have shape {tuple(targets.shape)}, but the model's logits "
            f"{tuple(logits.shape)} ask for {tuple(logits.shape[:-1])} class indices. Only "
            "classification is measured, one class number for every prediction; images of classes "
            "have them on dimension 1."
        )
    if targets.is_floating_point() or targets.is_complex():
        raise DataError(
            f"{where}: targets are {targets.dtype}; class indices are whole numbers. "
            "Turn one-hot or soft targets into indices with argmax(-1)."
        )
    if classes < 2:
        raise DataError(
            f"{where}: the model gives one number for every prediction. Only classification is "
            "measured, which needs logits of two classes or more: of a binary model that ends in "
            "one logit z, return torch.stack([torch.zeros_like(z), z], -1)."
        )
    labelled = targets[targets != IGNORED]
    if not labelled.numel():
        return
    low, high = int(labelled.min()), int(labelled.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{where}: targets run from {low} to {high}, but the model has {classes} classes, "
            f"numbered 0 to {classes - 1}. Is it the right data set for this model?"
        )


def _pick(raw: Any, part: str) -> Tensor:
    """The tensor that `part` leads to; one tensor alone is what is meant, whatever its name."""
    found = raw
    for key in part.split(".") if part else ():
        if not isinstance(found, Tensor):
            found = _entry(found, key, part, raw)
    if not isinstance(found, Tensor):
        found = _named_logits(found)
    if isinstance(found, Tensor):
        return found
    raise ModelError(
        f"the model returned {_listed(raw)} without logits. Say which part they are "
        f"({_choices(raw)}), or return a tensor, or an object or dict with 'logits'."
    )


def _entry(value: Any, key: str, part: str, raw: Any) -> Any:
    parts = _parts(value)
    if key in parts:
        return parts[key]
    raise ModelError(f"there is no '{part}' in what the model returned: {_listed(raw)}.")


def _named_logits(value: Any) -> Any:
    return value.get("logits") if isinstance(value, Mapping) else getattr(value, "logits", None)


def _parts(value: Any) -> dict[str, Any]:
    """What an output holds, by name or index."""
    if isinstance(value, Mapping):
        return {str(name): entry for name, entry in value.items()}
    named = dict(getattr(value, "__dict__", {}))
    if isinstance(value, tuple | list):
        named |= {name: getattr(value, name) for name in getattr(value, "_fields", ())}
        named |= {str(index): entry for index, entry in enumerate(value)}
    return named


def _part_of(raw: Any, targets: Tensor, said: str) -> str:
    """The part that holds the logits: the one said, the only one, or the only one that fits."""
    if said != AUTO:
        if isinstance(raw, Tensor) and said not in ("0", "logits"):
            raise ModelError(
                f"output is '{said}', but the model returns one tensor of shape "
                f"{tuple(raw.shape)}. Leave `output` out."
            )
        _pick(raw, said)
        return said
    named = isinstance(_named_logits(raw), Tensor)
    if isinstance(raw, Tensor) or named or not isinstance(raw, tuple | list):
        return ""
    tensors = {str(i): entry for i, entry in enumerate(raw) if isinstance(entry, Tensor)}
    fitting = {name for name, tensor in tensors.items() if _fits(tensor.shape, targets.shape)}
    found = fitting if len(tensors) > 1 else set(tensors)
    if len(found) == 1:
        return found.pop()
    raise ModelError(
        f"the model returned {_listed(raw)}, and {len(found) or 'none'} of them may be the logits "
        f"of targets of shape {tuple(targets.shape)}. Say which one is meant ({_choices(raw)}; an "
        "option of the task and of `finetune`)."
    )


def _fits(shape: Sequence[int], targets: Sequence[int]) -> list[int]:
    """The dimensions that may hold the classes."""
    shape, targets = tuple(shape), tuple(targets)
    last = [-1] if shape[:-1] == targets and len(shape) > 1 else []
    second = [1] if len(shape) > 2 and shape[:1] + shape[2:] == targets else []
    return last + second


def _classes_of(batches: Sequence[Batch], tensors: Sequence[Tensor]) -> int:
    """The dimension of the classes.

    Where both fit every batch, images have them on dimension 1 and the positions of token ids last.
    """
    fitting = [_fits(t.shape, b.targets.shape) for b, t in zip(batches, tensors, strict=True)]
    for dim, other in ((-1, 1), (1, -1)):
        if all(dim in dims for dims in fitting) and not all(other in dims for dims in fitting):
            return dim
    if not all(len(dims) == 2 for dims in fitting):
        return -1  # which does not fit: said with the batch where it is met
    if tensors[0].ndim > 3:
        return 1
    if token_ids(batches[0].inputs) is not None:
        return -1
    shape = tuple(tensors[0].shape)
    raise DataError(
        f"logits of shape {shape} and targets of shape {shape[:2]} go together in two ways: "
        f"{shape[2]} classes on the last dimension or on dimension 1. Give batches of another "
        "length, or say output=Output(classes=1) or Output() (from prune_env.quality.outputs)."
    )


def _scale_of(model: nn.Module, batches: Sequence[Batch], tensors: Sequence[Tensor]) -> str:
    """Whether all outputs are probabilities; said aloud.

    Raises:
        ModelError: each output is one by itself, behind a sigmoid.
    """
    rows = [
        logits.flatten(0, -2)[batch.targets.flatten() != IGNORED]
        for batch, logits in zip(batches, tensors, strict=True)
        if logits.ndim > 1 and logits.shape[:-1] == batch.targets.shape
    ]
    filled = [each_NK for each_NK in rows if each_NK.numel()]
    if not filled or not all(bool(((x >= 0) & (x <= 1.001)).all()) for x in filled):
        return "logits"
    name, limit = type(model).__name__, TOLERANCE.get(filled[0].dtype, 2e-2)
    if all(bool(((x.float().sum(-1) - 1).abs() < limit).all()) for x in filled):
        _log.warning(
            "%s gives probabilities (rows that sum to one), not logits; they are measured and "
            "tuned as such.", name,
        )  # fmt: skip
        return "probabilities"
    if not ends_in_sigmoid(model, batches[0].inputs):
        return "logits"
    raise ModelError(
        f"{name} ends in a sigmoid; only classification by logits, or by probabilities that sum to "
        "one, is measured. Return what stands before the sigmoid. If these are logits, say "
        "output=Output() (from prune_env.quality.outputs)."
    )


def _shapes(inputs: Any) -> str:
    shapes: list[str] = []

    def note(tensor: Tensor) -> Tensor:
        shapes.append(str(tuple(tensor.shape)))
        return tensor

    map_tensors(note, inputs)
    return ", ".join(shapes)


def _listed(raw: Any) -> str:
    held = [f"{name} {_kind(entry)}" for name, entry in _parts(raw).items()]
    return f"a {type(raw).__name__}" + (f" of {', '.join(held)}" if held else "")


def _kind(entry: Any) -> str:
    return str(tuple(entry.shape)) if isinstance(entry, Tensor) else type(entry).__name__


def _choices(raw: Any) -> str:
    names = [name for name, entry in _parts(raw).items() if isinstance(entry, Tensor)]
    shown = [name if name.isdecimal() else repr(name) for name in names]
    return " or ".join(f"output={name}" for name in shown) or "output=..."
