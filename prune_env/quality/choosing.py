"""Which objective a network and its data have: from the first batches, or as the user says.

What is clear is taken and said aloud; what would be a guess is asked for.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.errors import ConfigError, DataError, ModelError, look_up
from prune_env.quality.batches import Batch
from prune_env.quality.last_op import ends_in_sigmoid
from prune_env.quality.objectives import (
    BINARY,
    MULTILABEL,
    OBJECTIVES,
    OUTPUTS,
    REGRESSION,
    Objective,
)
from prune_env.quality.outputs import (
    AUTO,
    Output,
    Said,
    checked,
    choices,
    listed,
    named_logits,
    pick,
    within,
)
from prune_env.quality.padding import IGNORED
from prune_env.quality.shapes import KINDS, alike, require_classes, seen
from prune_env.quality.shift import labels_of_inputs, token_ids

_log = logging.getLogger(__name__)
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""How far from one a row of probabilities may sum, by dtype; the halved ones stray further."""

Wish = str | Objective | Callable[[nn.Module], float]
"""What a user says of quality: a name, a value, or a function from a network to a number."""
CLASSES = ("classification", "tokens", "segmentation")
"""By dimensions of the targets: one, two, more."""
SAME = {name: OBJECTIVES[name] for name in ("multilabel", "binary", "regression")}
"""Those with a target for every output."""


def wished(objective: object) -> str | Objective:
    """What was said of the objective; a function becomes the value that measures by it.

    Raises:
        ConfigError: it is neither a name, nor an `Objective`, nor a function.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        return objective if objective == AUTO else look_up("objective", objective, OBJECTIVES).name
    if callable(objective):
        return Objective(str(getattr(objective, "__name__", "quality")), evaluate=objective)
    raise ConfigError(
        f"objective is {objective!r}; give one of {', '.join(OBJECTIVES)}, an Objective, or a "
        "function from a network to a number."
    )


def find_objective(
    model: nn.Module,
    batches: Sequence[Batch],
    raws: Sequence[Any],
    objective: Wish = AUTO,
    output: Said = AUTO,
) -> Objective:
    """What quality means here, with the way that the network's outputs are read.

    Args:
        model: the network, in eval mode.
        batches: data.
        raws: what the network returned for each of them.
        objective: what the user says; an `Objective` is taken as it is.
        output: what the user says of the outputs; an `Output` is taken as it is.

    Raises:
        ConfigError: what was said is malformed.
        ModelError: the part is not there, or several may be meant.
        DataError: the targets do not fit the outputs, or are what the network reads.
    """
    wish, said = wished(objective), checked(output)
    if isinstance(wish, Objective):
        return wish if said == AUTO else wish.reading(_part(said, raws[0], wish.output))
    if wish == OUTPUTS.name:
        return OUTPUTS if said == AUTO else OUTPUTS.reading(_part(said, raws[0], OUTPUTS.output))
    if wish == AUTO and all(batch.targets is None for batch in batches):
        _log.warning(
            "the loader gives no targets: quality is how close the outputs of %s stay to the dense "
            "network's (objective='outputs').", type(model).__name__,
        )  # fmt: skip
        return find_objective(model, batches, raws, OUTPUTS.name, output)
    for batch, raw in zip(batches, raws, strict=True):
        if not isinstance(batch.targets, Tensor):
            raise DataError(f"{seen(raw, batch.targets)}: what they mean has to be said. {KINDS}")
    same = _same_shape(batches, raws, said) if wish == AUTO else SAME.get(wish)
    if same is not None:
        return _with_targets(model, batches, raws, same, said)
    reading = _classes_read(model, batches, raws, said)
    found = OBJECTIVES[CLASSES[min(batches[0].targets.ndim, 3) - 1] if wish == AUTO else wish]
    return found.reading(reading)


def _part(said: str | Output, raw: Any, own: Output) -> Output:
    """An own objective reads the part that was said, one tensor or not."""
    if isinstance(said, Output):
        return said
    within(raw, said)
    return dataclasses.replace(own, part=said)


def _same_shape(
    batches: Sequence[Batch], raws: Sequence[Any], said: str | Output
) -> Objective | None:
    """The objective of targets that have the shape of the outputs; None: they are classes.

    Raises:
        DataError: targets could be meant in two ways.
    """
    pairs = [
        (_meant(raw, b.targets, said), b.targets) for b, raw in zip(batches, raws, strict=True)
    ]
    if not all(t is not None and alike(t, y) for t, y in pairs):
        return None
    whole = not any(y.is_floating_point() for _, y in pairs)
    if whole and all(t is not None and _several(t, y) for t, y in pairs):
        return None
    first = pairs[0][1]
    labels = torch.cat([y.flatten() for _, y in pairs])
    labels = labels[labels != IGNORED]
    single = first.numel() == len(first)
    if bool(((labels == 0) | (labels == 1)).all()):
        if single:
            return BINARY
        if all(bool((y.flatten(1).sum(1) == 1).all()) for _, y in pairs):
            raise DataError(
                f"every target has exactly one 1 ({seen(*pairs[0])}). Turn one-hot targets into "
                "class indices with argmax(-1); if they are labels of their own, say "
                "objective='multilabel'."
            )
        return MULTILABEL
    if not first.is_floating_point():
        raise DataError(
            f"{seen(*pairs[0])}: whole numbers in the shape of the outputs. Numbers to be met are "
            "objective='regression'; classes need an output for each of them."
        )
    rows = first.flatten(1) if not single else None
    if (
        rows is not None
        and bool((first >= 0).all())
        and torch.allclose(rows.sum(1), torch.ones(len(rows)).to(rows), atol=1e-3)
    ):
        raise DataError(
            f"every target sums to one ({seen(*pairs[0])}). Turn soft targets into class indices "
            "with argmax(-1); if they are numbers to be met, say objective='regression'."
        )
    return REGRESSION


def _several(outputs: Tensor, targets: Tensor) -> bool:
    """Whether there are several outputs for every target."""
    return any(outputs.shape[dim] > 1 for dim in _fits(outputs.shape, targets.shape))


def _meant(raw: Any, targets: Tensor, said: str | Output) -> Tensor | None:
    """The tensor that is meant, where one is."""
    try:
        if isinstance(said, Output):
            return pick(raw, said.part).movedim(said.classes, -1)
        return pick(raw, _part_of(raw, targets, said))
    except ModelError:
        return None


def _with_targets(
    model: nn.Module,
    batches: Sequence[Batch],
    raws: Sequence[Any],
    found: Objective,
    said: str | Output,
) -> Objective:
    """An objective with a target for every output, and its reading."""
    if isinstance(said, Output):
        return found.reading(said)
    part = _part_of(raws[0], batches[0].targets, said)
    sure = found is not REGRESSION and ends_in_sigmoid(model, batches[0].inputs)
    if sure:
        _log.warning(
            "%s ends in a sigmoid; its probabilities are measured and tuned as such.",
            type(model).__name__,
        )
    found = found.reading(Output(part, scale="sigmoid" if sure else "logits"))
    if found.figure.name == "f1" and batches[0].targets.numel() == len(batches[0].targets):
        found = BINARY.reading(found.output)
    _log.info("quality is '%s' (%s).", found.name, found.figure.name)
    return found


def _classes_read(
    model: nn.Module, batches: Sequence[Batch], raws: Sequence[Any], said: str | Output
) -> Output:
    """How class logits are read."""
    if isinstance(said, Output):
        for raw in raws:
            pick(raw, said.part)
        return said
    part = _part_of(raws[0], batches[0].targets, said)
    tensors = [pick(raw, part) for raw in raws]
    classes = _classes_of(batches, tensors)
    moved = [tensor.movedim(classes, -1) for tensor in tensors]
    for number, (batch, logits) in enumerate(zip(batches, moved, strict=True)):
        require_classes(logits, batch.targets, f"batch {number}")
    scale = _scale_of(model, batches, moved)
    ahead = classes == -1 and labels_of_inputs(model, batches[0], tensors[0])
    return Output(part, classes, scale, ahead)


def _part_of(raw: Any, targets: Tensor, said: str) -> str:
    """The part that holds the logits: the one said, the only one, or the only one that fits."""
    if said != AUTO:
        if isinstance(raw, Tensor) and said not in ("0", "logits"):
            raise ModelError(
                f"output is '{said}', but the model returns one tensor of shape "
                f"{tuple(raw.shape)}. Leave `output` out."
            )
        pick(raw, said)
        return said
    named = isinstance(named_logits(raw), Tensor)
    if isinstance(raw, Tensor) or named or not isinstance(raw, tuple | list):
        return ""
    tensors = {str(i): entry for i, entry in enumerate(raw) if isinstance(entry, Tensor)}
    fitting = {
        name for name, t in tensors.items() if _fits(t.shape, targets.shape) or alike(t, targets)
    }
    found = fitting if len(tensors) > 1 else set(tensors)
    if len(found) == 1:
        return found.pop()
    raise ModelError(
        f"the model returned {listed(raw)}, and {len(found) or 'none'} of them may be the logits "
        f"of targets of shape {tuple(targets.shape)}. Say which one is meant ({choices(raw)}; an "
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
