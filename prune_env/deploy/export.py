"""A pruned network for programs that do not know this package.

What is to be written is run beside the network first, where PyTorch or a library that is there can.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from prune_env.deploy.pretrained import export_pretrained
from prune_env.errors import ConfigError, ModelError
from prune_env.plan.plan import PruningPlan
from prune_env.storage import write_bytes
from prune_env.structure.inputs import (
    Inputs,
    call_model,
    eval_mode,
    map_tensors,
    tensors_of_inputs,
)

AGREEMENT = 1e-4
"""Largest difference between two ways to compute the same, relative to the largest output."""


def export(network: nn.Module, plan: PruningPlan, path: str | Path, example: Inputs) -> Path:
    """Write a pruned network in the form that the end of `path` says.

    Args:
        network: what `apply` or `finetune` gave.
        plan: what it was made with.
        path: `.pt2` for `torch.export`, `.onnx` for ONNX (needs the packages onnx and onnxscript),
            or a folder without an ending for the transformers library (`export_pretrained`).
        example: inputs of a batch of two samples or more.

    Raises:
        ConfigError: an unknown ending, or a package is missing.
        ModelError: the network cannot be traced, or what was written gives other outputs.
        PlanError: a folder is asked for, and no config of the library describes the network.
        RunError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        known = ", ".join(sorted(filter(None, WRITERS)))
        raise ConfigError(
            f"export to '{path}': there is no form '{path.suffix}'. Give a file that ends in "
            f"{known}, or a folder."
        )
    return WRITERS[path.suffix](network, plan, path, example)


def _program(network: nn.Module, plan: PruningPlan, path: Path, example: Inputs) -> Path:
    with eval_mode(network), torch.no_grad():
        traced, buffer = _traced(network, example), BytesIO()
        _require_alike(path, call_model(traced.module(), example), call_model(network, example))
        torch.export.save(traced, buffer)
    return write_bytes(path, buffer.getvalue())


def _onnx(network: nn.Module, plan: PruningPlan, path: Path, example: Inputs) -> Path:
    missing = [n for n in ("onnx", "onnxscript") if importlib.util.find_spec(n) is None]
    if missing:
        raise ConfigError(
            f"export to '{path}' needs {' and '.join(missing)}: pip install 'prune_env[onnx]'. Or "
            "give a file that ends in .pt2, which needs nothing."
        )
    with eval_mode(network), torch.no_grad():
        program: Any = torch.onnx.export(_traced(network, example), (), dynamo=True, verbose=False)
        if importlib.util.find_spec("onnxruntime") is not None:
            given, named = _arguments(example)
            _require_alike(path, tuple(program(*given, **named)), call_model(network, example))
    return write_bytes(path, program.model_proto.SerializeToString())


def _folder(network: nn.Module, plan: PruningPlan, path: Path, example: Inputs) -> Path:
    return export_pretrained(network, plan, path, example)


WRITERS: Mapping[str, Callable[[nn.Module, PruningPlan, Path, Inputs], Path]] = {
    ".pt2": _program,
    ".onnx": _onnx,
    "": _folder,
}
"""Ending of a path -> who writes it. Add a form here."""


def _arguments(example: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How `call_model` gives inputs to a network."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


def _traced(network: nn.Module, example: Inputs) -> Any:
    """The network as a graph, for batches of any size where it takes them."""
    given, named = _arguments(example)
    free: Any = lambda tensor: {0: Dim.AUTO} if tensor.ndim else {}  # noqa: E731
    sizes = map_tensors(free, (given, named))
    shapes = tuple(sizes[0]) or sizes[1]
    try:
        return torch.export.export(network, given, named, dynamic_shapes=shapes)
    except Exception as error:  # of any kind, from the depths of the tracer
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{type(network).__name__} cannot be traced by torch.export: {reason}. Keep it with "
            "`save` and its own code."
        ) from error


def _require_alike(path: Path, found: Any, expected: Any) -> None:
    """Check what was written against the network.

    Raises:
        ModelError: the outputs differ.
    """
    pairs = list(zip(tensors_of_inputs(found), tensors_of_inputs(expected), strict=False))
    apart = [float((a - b).abs().max()) / max(float(b.abs().max()), 1e-12) for a, b in pairs]
    if not pairs or max(apart) > AGREEMENT:
        raise ModelError(
            f"what would be written to '{path}' gives other outputs than the network (by "
            f"{max(apart, default=1.0):.2g} of the largest). Keep it with `save`."
        )
