"""Scenes: the ways to run a network that show more of it than one forward pass in eval mode.

Layers may run in train mode only (auxiliary heads), for some batches only, or behind a question to
the data that the example answers one way. What a scene shows is joined with what others show.
"""

from __future__ import annotations

import copy
import os
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prune_env.errors import ModelError
from prune_env.structure.entry import why_not
from prune_env.structure.inputs import Inputs, batch_size, call_model, map_tensors

CALLED = (
    "Give one batch as the model expects it: a tensor, a tuple for model(*inputs), or a dict for "
    "model(**inputs)."
)
MOST_QUESTIONS = 8
"""Places in the code whose questions to data are answered the other way, at most."""

INSIDE = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
"""Code that asks on behalf of others."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One way to run a network.

    Attributes:
        inputs: one batch.
        training: in train mode, on a copy, so that statistics stay.
        turned: place in the code (file:line) that gets the other answer when it asks whether a
            value of a tensor is true, or positive; as often as `times`.
    """

    inputs: Inputs
    training: bool = False
    turned: str = ""
    times: int = 0

    @property
    def name(self) -> str:
        """For reasons: empty for a plain pass in eval mode."""
        place = Path(self.turned).name
        return "in train mode" * self.training or f"when {place} decides otherwise" * bool(place)

    def stage(self, model: nn.Module) -> nn.Module:
        """The network to run: `model`, or a copy of it in train mode."""
        return copy.deepcopy(model).train() if self.training else model

    def play(self, stage: nn.Module) -> Any:
        """What `stage` returns; gradients are off."""
        answers = _Turned(self.turned, self.times) if self.turned else nullcontext()
        with torch.no_grad(), answers, warnings.catch_warnings():
            if self.name:  # a warning was given in the plain scene, or is about ours
                warnings.simplefilter("ignore")
            return call_model(stage, self.inputs)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, random numbers may be drawn that nobody outside will miss."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


def scenes_of(model: nn.Module, batches: Sequence[Inputs]) -> tuple[Scene, ...]:
    """Scenes that differ in what they run: each batch in eval and train mode, decisions turned.

    A batch that runs the same ops on the same weights as one before it shows nothing new.

    Args:
        model: in eval mode; run, not changed.
        batches: inputs; the first one always makes the first scene.

    Raises:
        ModelError: the model does not run on one of the batches.
    """
    seen: set[frozenset[object]] = set()
    plain, questions = [], Counter[str]()
    for inputs in batches:
        watch = _watched(model, Scene(inputs))
        questions |= watch.questions
        if watch.steps not in seen:
            plain.append(Scene(inputs))
            seen.add(watch.steps)
    training = (_training(model, scene.inputs) for scene in plain)
    found = [*plain, *(scene for scene in training if scene is not None)]
    for place, times in questions.most_common(MOST_QUESTIONS):
        scene = Scene(batches[0], turned=place, times=times)
        steps = _steps(model, scene)
        if steps is not None and steps not in seen:
            found.append(scene)
            seen.add(steps)
    return tuple(found)


def _watched(model: nn.Module, scene: Scene) -> _Watch:
    watch = _Watch(model)
    try:
        with watch:
            scene.play(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} does not run on the example inputs: "
            f"{str(error).strip().partition(chr(10))[0]}. " + why_not(model, scene.inputs, CALLED)
        ) from error
    return watch


def _training(model: nn.Module, inputs: Inputs) -> Scene | None:
    """The batch in train mode, twice over if BatchNorm asks for more; None where it cannot run."""
    for batch in (inputs, _doubled(inputs)):
        scene = Scene(batch, training=True)
        if _steps(model, scene) is not None:
            return scene
    return None


def _doubled(inputs: Inputs) -> Inputs:
    size = batch_size(inputs)

    def twice(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor]) if tensor.ndim and len(tensor) == size else tensor

    doubled: Inputs = map_tensors(twice, inputs)
    return doubled


def _steps(model: nn.Module, scene: Scene) -> frozenset[object] | None:
    """What a scene runs; None when it fails, which only the plain ones must not."""
    stage = scene.stage(model)
    watch = _Watch(stage)
    try:
        with watch:
            scene.play(stage)
    except Exception:
        return None
    return watch.steps


class _Watch(TorchDispatchMode):
    """Notes which op follows which on which tensors of the model, and who asks for a value."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {id(t): name for name, t in model.named_parameters()}
        self._last: object = ""
        self._pairs: set[object] = set()
        self.questions = Counter[str]()

    @property
    def steps(self) -> frozenset[object]:
        """Pairs of steps; that a loop runs longer makes no new pair."""
        return frozenset(self._pairs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        names = (self._names.get(id(leaf)) for leaf in tree_leaves((args, kwargs)))
        step = (func.overloadpacket.__name__, *(name for name in names if name))
        self._pairs.add((self._last, step))
        self._last = step
        if isinstance(out, bool | float):
            self.questions[_place()] += 1
        return out


class _Turned(TorchDispatchMode):
    """Answers one place in the code the other way."""

    def __init__(self, place: str, times: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._place, self._left = place, times

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, bool | float) and self._left and _place() == self._place:
            self._left -= 1  # a loop that waits for an answer gets it in the end
            return not out if isinstance(out, bool) else -out
        return out


def _place() -> str:
    """Where the user's code is right now."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
