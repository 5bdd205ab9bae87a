"""torchvision, where it is installed: it is no dependency of ours.

Beside a CPU build of torch its import fails (`operator torchvision::nms does not exist`): its
compiled operators are missing, yet it registers meta kernels for two of them. Declaring the two
schemas first is enough for its models and transforms.
"""

from __future__ import annotations

import contextlib
import importlib.util
from functools import cache
from types import ModuleType
from typing import Any

import torch

from prune_env.errors import ConfigError

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@cache
def declare_operators() -> Any:
    """Make torchvision importable; needed too before a library that imports torchvision itself.

    Returns the library fragment with the schemas; it lives as long as this cache.
    """
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS.values():
        # Already there in a build that has the operators.
        with contextlib.suppress(RuntimeError):
            fragment.define(schema)
    return fragment


@cache
def vision_models() -> ModuleType:
    """`torchvision.models`.

    Raises:
        ConfigError: torchvision is not installed, or does not fit this torch.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise ConfigError("torchvision is not installed. Try: pip install --no-deps torchvision")
    try:
        declare_operators()
        return importlib.import_module("torchvision.models")
    except Exception as error:
        raise ConfigError(
            f"torchvision cannot be imported: {error}. Install the version made for torch "
            f"{torch.__version__}, with pip install --no-deps."
        ) from error
