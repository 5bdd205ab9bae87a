"""Image classifiers of the transformers library, tiny and random: nothing is downloaded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Hub:
    """How to build one model, and the share of its MACs that must be prunable at least."""

    module: str
    name: str
    share: float
    size: int = 32
    options: dict[str, Any] = field(default_factory=dict)

    def make(self) -> nn.Module:
        package = importlib.import_module(f"transformers.models.{self.module}")
        config = getattr(package, f"{self.name}Config")(num_labels=5, **self.options)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(package, f"{self.name}ForImageClassification")(config).eval()
        assert isinstance(model, nn.Module)
        return model


STAGES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 2, 1, 1]}

HUB = {
    "resnet_basic": Hub(
        "resnet", "ResNet", 0.9, options={**STAGES, "embedding_size": 8, "layer_type": "basic"}
    ),
    "resnet_bottleneck": Hub(
        "resnet",
        "ResNet",
        0.9,
        options={"hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 1, 1], "embedding_size": 8},
    ),
    "mobilenet_v1": Hub(
        "mobilenet_v1", "MobileNetV1", 0.9, options={"depth_multiplier": 0.125, "min_depth": 4}
    ),
    "mobilenet_v2": Hub(
        "mobilenet_v2",
        "MobileNetV2",
        0.9,
        options={"depth_multiplier": 0.2, "min_depth": 4, "depth_divisible_by": 4},
    ),
    "efficientnet": Hub(
        "efficientnet",
        "EfficientNet",
        0.9,
        options={
            "width_coefficient": 0.25,
            "depth_coefficient": 0.5,
            "hidden_dim": 320,
            "depth_divisor": 4,
        },
    ),
    "regnet_x": Hub(
        "regnet",
        "RegNet",
        0.9,
        options={
            **STAGES,
            "hidden_sizes": [8, 16, 24, 32],
            "embedding_size": 8,
            "groups_width": 4,
            "layer_type": "x",
        },
    ),
    "regnet_y": Hub(
        "regnet",
        "RegNet",
        0.9,
        options={
            **STAGES,
            "hidden_sizes": [8, 16, 24, 32],
            "embedding_size": 8,
            "groups_width": 4,
            "layer_type": "y",
        },
    ),
    "convnext": Hub("convnext", "ConvNext", 0.4, options=STAGES),
    "convnext_v2": Hub("convnextv2", "ConvNextV2", 0.0, options=STAGES),
}
