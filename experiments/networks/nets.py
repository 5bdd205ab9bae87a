"""The networks of the CIFAR literature, at CIFAR size: images (B, 3, 32, 32), or any size near.

No forward pass counts channels, so every net still runs after channels were removed; the one
exception is the zero-padded shortcut, which is kept as published.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Shortcut "A" of He et al. 2016, section 4.2: every second pixel, new channels zero."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        thinned = x[:, :, :: self.stride, :: self.stride]
        return F.pad(thinned, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut without parameters."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        same = stride == 1 and inside == outside
        self.shortcut = nn.Identity() if same else PadShortcut(outside - inside, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for CIFAR. Deep Residual Learning, He et al. 2016, section 4.2."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(self.pool(out).flatten(1))


def _stage(inside: int, outside: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inside, outside, stride)
    return nn.Sequential(first, *(BasicBlock(outside, outside, 1) for _ in range(blocks - 1)))


class CifarVGG(nn.Module):
    """VGG with BatchNorm and one linear layer. Very Deep Networks, Simonyan and Zisserman 2015."""

    def __init__(self, stages: tuple[tuple[int, ...], ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 3
        for widths in stages:
            for width in widths:
                convolution = nn.Conv2d(inside, width, 3, 1, 1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inside = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inside, classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class InvertedResidual(nn.Module):
    """Widen 1 x 1, filter each channel 3 x 3, narrow 1 x 1; added to the input where it fits."""

    def __init__(self, inside: int, outside: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inside * expansion
        widen = _conv_bn_relu6(inside, hidden, 1) if expansion != 1 else []
        narrow = [nn.Conv2d(hidden, outside, 1, bias=False), nn.BatchNorm2d(outside)]
        filtering = _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden)
        self.conv = nn.Sequential(*widen, *filtering, *narrow)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return x + out if self.residual else out


class CifarMobileNetV2(nn.Module):
    """MobileNetV2, Sandler et al. 2018, with the first two halvings left out for 32 x 32 images."""

    # expansion, width, blocks, stride of the first block
    STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers = _conv_bn_relu6(3, 32, 3)
        inside = 32
        for expansion, width, blocks, stride in self.STAGES:
            for block in range(blocks):
                step = 1 if block else stride
                layers.append(InvertedResidual(inside, width, step, expansion))
                inside = width
        self.features = nn.Sequential(*layers, *_conv_bn_relu6(inside, 1280, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _conv_bn_relu6(
    inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outside), nn.ReLU6(inplace=True)]


def _kaiming(net: nn.Module) -> None:
    """He initialisation of every convolution, as published with the ResNets."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
