"""Architectures of other libraries with random weights, small where they can be, to try discovery.

Nothing is downloaded. transformers, torchvision and timm are imported only when a model is built.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prune_env.errors import ConfigError
from prune_env.experiments.networks.vision import declare_operators, vision_models
from prune_env.structure.inputs import Inputs

Example = tuple[nn.Module, Inputs]

STAGES = {"depths": [1, 2, 1, 1], "hidden_sizes": [16, 24, 32, 48]}

CONFIGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "hf-resnet-basic": ("ResNet", {**STAGES, "embedding_size": 16, "layer_type": "basic"}),
    "hf-resnet-bottleneck": ("ResNet", {**STAGES, "embedding_size": 16}),
    "hf-mobilenetv1": ("MobileNetV1", {"depth_multiplier": 0.25}),
    "hf-mobilenetv2": ("MobileNetV2", {"depth_multiplier": 0.35}),
    "hf-efficientnet": (
        "EfficientNet",
        {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
    ),
    "hf-regnet-x": (
        "RegNet",
        {**STAGES, "embedding_size": 16, "groups_width": 8, "layer_type": "x"},
    ),
    "hf-regnet-y": ("RegNet", {**STAGES, "embedding_size": 16, "groups_width": 8}),
    "hf-convnext": ("ConvNext", STAGES),
    "hf-convnextv2": ("ConvNextV2", STAGES),
}
"""Name -> architecture in transformers and what its small config differs in."""

VISION = (
    "densenet121", "googlenet", "inception_v3", "shufflenet_v2_x1_0", "resnext50_32x4d",
    "mnasnet1_0", "efficientnet_b0", "regnet_x_400mf", "convnext_tiny", "mobilenet_v2",
    "mobilenet_v3_small", "vgg11", "resnet18", "squeezenet1_1",
)  # fmt: skip
"""Factories in torchvision.models."""

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}
"""Keywords of factories whose defaults are slow (a truncated normal from scipy)."""

SIZES = {"inception_v3": 299, "vgg11": 32}
"""Image sizes other than 64: the smallest that pass, or enough."""


TIMM: Mapping[str, Mapping[str, Any]] = {
    name: {}
    for name in (
        "convnext_atto", "dla34", "edgenext_xx_small", "efficientvit_b0", "ese_vovnet19b_slim_dw",
        "fastvit_t8", "ghostnet_050", "hgnetv2_b0", "lcnet_050", "mobilenetv4_conv_small",
        "mobilevit_xxs", "nf_regnet_b0", "regnety_002", "repvgg_a0", "rexnetr_200", "selecsls42",
        "skresnet18", "tinynet_e",
    )
} | {
    "levit_128s": {"img_size": 224},
    "mixer_s32_224": {"img_size": 64},
    "deit_tiny_distilled_patch16_224": {"img_size": 64},
    "vit_tiny_patch16_224": {"img_size": 64},
}  # fmt: skip
"""Names for timm.create_model, with its keywords."""


def images(size: int = 64) -> Tensor:
    """Two random images, (2, 3, size, size)."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _transformer(architecture: str, differences: Mapping[str, Any]) -> Example:
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("transformers is not installed. Try: pip install transformers")
    if importlib.util.find_spec("torchvision") is not None:
        declare_operators()  # transformers imports torchvision wherever it finds it
    library = importlib.import_module("transformers")
    config = getattr(library, f"{architecture}Config")(num_labels=10, **differences)
    return getattr(library, f"{architecture}ForImageClassification")(config), images()


def _timm(name: str, options: Mapping[str, Any]) -> Example:
    if importlib.util.find_spec("timm") is None:
        raise ConfigError("timm is not installed. Try: pip install --no-deps timm")
    vision_models()  # timm imports torchvision
    model = importlib.import_module("timm").create_model(name, num_classes=10, **options)
    return model, images(options.get("img_size", 64))


def _vision(name: str) -> Example:
    return getattr(vision_models(), name)(**OPTIONS.get(name, {})), images(SIZES.get(name, 64))


ZOO: dict[str, Callable[[], Example]] = {
    **{name: partial(_transformer, *entry) for name, entry in CONFIGS.items()},
    **{f"tv-{name}": partial(_vision, name) for name in VISION},
    **{f"timm-{name}": partial(_timm, name, options) for name, options in TIMM.items()},
}
"""Name -> a factory of the network and two samples; raises ConfigError without its library."""
