"""Networks that are hard on discovery: each holds one thing that breaks naive tracing.

`NASTY` maps a name to (factory, factory of inputs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from prune_env.structure.inputs import Inputs
from prune_env.testing import conv


def image(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def tokens(batch: int = 2) -> Tensor:
    return torch.randint(0, 11, (batch, 7), generator=torch.Generator().manual_seed(0))


class Wrapped(nn.Module):
    """stem, a middle that takes and gives (B, width, H, W), mean, head."""

    def __init__(self, middle: nn.Module, width: int = 8, out: int | None = None) -> None:
        super().__init__()
        self.stem, self.middle = conv(3, width), middle
        self.head = nn.Linear(width if out is None else out, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.middle(self.stem(x)).mean((2, 3)))


class Fn(nn.Module):
    """A function of the features, with modules it may use."""

    def __init__(self, fn: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.fn = fn
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self, x)


class TiedWeights(nn.Module):
    """An embedding whose matrix is also the output layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.down(self.up(self.embed(x)).relu()))


class SharedLayer(nn.Module):
    """One parameter in two layers of different names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.b.weight = self.a.weight
        self.after, self.head = conv(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(self.stem(x)))))
        return self.head(self.after(x).mean((2, 3)))


class Attention(nn.Module):
    """Image features as tokens of nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.mlp = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.flatten(2).transpose(1, 2)
        mixed = self.mlp(self.attend(sequence, sequence, sequence)[0]).relu()
        return mixed.transpose(1, 2).unflatten(2, x.shape[2:])


class Recurrent(nn.Module):
    """Convolution in time, LSTM, last step."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 3, padding=1)
        self.lstm, self.head = nn.LSTM(8, 6, batch_first=True, num_layers=2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.stem(x)).transpose(1, 2)
        return self.head(self.lstm(features)[0][:, -1])


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: the kernel is computed from the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.std((1, 2, 3), keepdim=True) + 1e-5
        return F.conv2d(x, (self.weight - mean) / deviation, self.bias, padding=1)


class ComputedKernel(nn.Module):
    """A kernel made from the input by a linear layer, per batch."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(8, 8 * 9)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.make(x.mean((0, 2, 3))).view(8, 1, 3, 3)
        return F.conv2d(x, kernel, padding=1, groups=8)


@dataclass
class Output:
    """What some model zoos return."""

    logits: Tensor
    features: Tensor


class Returns(nn.Module):
    """Returns logits and features through `form`."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.mix, self.head = conv(3, 8), conv(8, 6), nn.Linear(6, 5)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        features = self.mix(self.stem(x))
        return self.form(self.head(features.mean((2, 3))), features)


class ChannelAttention(nn.Module):
    """CBAM and ECA in one: pooled twice, one gate of an MLP, one of a conv across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.across = nn.Conv1d(1, 1, 3, padding=1)
        self.space = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * gate[:, :, None, None]
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        x = x * torch.sigmoid(self.space(both))
        return x * self.across(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None].sigmoid()


class NonLocal(nn.Module):
    """Self-attention over positions made of 1x1 convolutions and bmm."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(8, 6, 1) for _ in range(3))
        self.back = nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        mixed = v @ torch.softmax(q.transpose(1, 2) @ k, -1).transpose(1, 2)
        return x + self.back(mixed.unflatten(2, x.shape[2:]))


class TokenMixer(nn.Module):
    """MLP-Mixer without norms: a linear layer over positions, then one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.channels = nn.Linear(64, 64), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.positions(x.flatten(2)).relu()
        return self.channels(y.transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class Buffers(nn.Module):
    """Buffers used elementwise, one of them not persistent, one integer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(8, 1, 1))
        self.register_buffer("gain", torch.rand(8, 1, 1) + 0.5, persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (x - self.mean) * 2


class ExtraState(nn.Module):
    """Something in the state_dict that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class MultiScale(nn.Module):
    """Upsample, concatenate, residual across scales (U-Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 12, 3, 2, 1), nn.ConvTranspose2d(12, 6, 2, 2)
        self.same, self.join = nn.Conv2d(12, 6, 1), nn.Conv2d(20, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        low = self.down(x).relu()
        up = self.up(low)
        resized = F.interpolate(self.same(low), scale_factor=2, mode="bilinear")
        return self.join(torch.cat([x, up, resized], 1)).relu()


def _weight_normed() -> nn.Module:
    return Wrapped(parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)))


def _three_d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip


def _one_d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip


def _transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1),
    )  # fmt: skip


def _bag() -> nn.Module:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up, self.head = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.up(self.embed(x).mean(1)).relu())

    return Bag()


def series() -> Tensor:
    return torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))


def volume() -> Tensor:
    return torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def _group_conv(inputs: int, outputs: int, groups: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


PARTS = {"tuple": "0", "nested_dataclass": "0"}
"""Which part of the output of these is the logits; the others say so themselves."""
NASTY: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs]]] = {
    "tied_weights": (TiedWeights, tokens),
    "shared_layer": (SharedLayer, image),
    "attention": (lambda: Wrapped(Attention()), image),
    "encoder_layer": (
        lambda: Wrapped(
            Fn(
                lambda m, x: m.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None],
                layer=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            )
        ),
        image,
    ),
    "recurrent": (Recurrent, series),
    "in_place": (
        lambda: Wrapped(
            Fn(
                lambda m, x: m.a(x).relu_().mul_(2).add_(x).clamp_(-3, 3),
                a=nn.Conv2d(8, 8, 3, padding=1),
            )
        ),
        image,
    ),
    "in_place_slice": (
        lambda: Wrapped(Fn(lambda m, x: _write_slice(m.a(x)), a=nn.Conv2d(8, 8, 3, padding=1))),
        image,
    ),
    "standardised": (lambda: Wrapped(StandardisedConv(8, 8, 3)), image),
    "weight_norm": (_weight_normed, image),
    "hard_coded_view": (
        lambda: Wrapped(
            Fn(lambda m, x: m.a(x).view(2, 8, 64).relu().view(2, 8, 8, 8), a=nn.Conv2d(8, 8, 1))
        ),
        image,
    ),
    "tuple": (lambda: Returns(lambda y, f: (y, [f])), image),
    "dict": (lambda: Returns(lambda y, f: {"logits": y, "more": {"features": f}}), image),
    "dataclass": (lambda: Returns(Output), image),
    "nested_dataclass": (lambda: Returns(lambda y, f: (y, {"aux": Output(y, f)})), image),
    "dropout": (
        lambda: Wrapped(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Dropout(0.5), nn.BatchNorm2d(8))),
        image,
    ),
    "one_d": (_one_d, series),
    "three_d": (_three_d, volume),
    "transposed": (_transposed, image),
    "grouped_transposed": (
        lambda: Wrapped(
            nn.Sequential(nn.ConvTranspose2d(8, 12, 2, 2, groups=2), nn.Conv2d(12, 8, 1))
        ),
        image,
    ),
    "computed_kernel": (lambda: Wrapped(ComputedKernel()), image),
    "checkpointed": (
        lambda: Wrapped(
            Fn(
                lambda m, x: checkpoint(m.a, x, use_reentrant=False),
                a=nn.Sequential(conv(8, 6), nn.Conv2d(6, 8, 1)),
            )
        ),
        image,
    ),
    "buffers": (lambda: Wrapped(Buffers()), image),
    "bag": (_bag, tokens),
    "group_norm": (
        lambda: Wrapped(nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 1))),
        image,
    ),
    "instance_norm": (
        lambda: Wrapped(
            nn.Sequential(nn.Conv2d(8, 6, 1), nn.InstanceNorm2d(6, affine=True), nn.Conv2d(6, 8, 1))
        ),
        image,
    ),
    "instance_norm_stats": (
        lambda: Wrapped(
            nn.Sequential(
                nn.Conv2d(8, 6, 1),
                nn.InstanceNorm2d(6, track_running_stats=True),
                nn.Conv2d(6, 8, 1),
            )
        ),
        image,
    ),
    "prelu": (
        lambda: Wrapped(nn.Sequential(nn.Conv2d(8, 6, 1), nn.PReLU(6), nn.Conv2d(6, 8, 1))),
        image,
    ),
    "prelu_single": (
        lambda: Wrapped(nn.Sequential(nn.Conv2d(8, 6, 1), nn.PReLU(), nn.Conv2d(6, 8, 1))),
        image,
    ),
    "depth_multiplier": (
        lambda: Wrapped(nn.Sequential(_group_conv(8, 24, 8), nn.ReLU(), nn.Conv2d(24, 8, 1))),
        image,
    ),
    "depth_divider": (
        lambda: Wrapped(nn.Sequential(_group_conv(8, 4, 4), nn.ReLU(), nn.Conv2d(4, 8, 1))),
        image,
    ),
    "channel_attention": (lambda: Wrapped(ChannelAttention()), image),
    "non_local": (lambda: Wrapped(NonLocal()), image),
    "token_mixer": (lambda: Wrapped(TokenMixer()), image),
    "extra_state": (lambda: Wrapped(ExtraState()), image),
    "multi_scale": (lambda: Wrapped(MultiScale()), image),
    "space_to_depth": (
        lambda: Wrapped(
            Fn(lambda m, x: m.a(F.pixel_unshuffle(m.b(x), 2)), b=conv(8, 6), a=nn.Conv2d(24, 8, 1))
        ),
        image,
    ),
    "focus": (
        lambda: Wrapped(
            Fn(
                lambda m, x: m.a(torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1)),
                a=nn.Conv2d(16, 8, 1),
            )
        ),
        image,
    ),
    "maxout": (
        lambda: Wrapped(
            Fn(lambda m, x: m.a(x).unflatten(1, (-1, 2)).amax(2), a=nn.Conv2d(8, 16, 1))
        ),
        image,
    ),
    "gated": (
        lambda: Wrapped(
            Fn(lambda m, x: m.b(F.glu(m.a(x), 1)), a=nn.Conv2d(8, 12, 1), b=nn.Conv2d(6, 8, 1))
        ),
        image,
    ),
    "gather": (
        lambda: Wrapped(Fn(lambda m, x: x[:, torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])])),
        image,
    ),
    "einsum": (
        lambda: Wrapped(
            Fn(
                lambda m, x: torch.einsum("bchw,dc->bdhw", x, m.w),
                w=nn.Parameter(torch.randn(8, 8)),
            )
        ),
        image,
    ),
    "python_branch": (
        lambda: Wrapped(Fn(lambda m, x: x * (2.0 if float(x.mean()) > 0 else 1.0))),
        image,
    ),
    "l2_normalised": (lambda: Wrapped(Fn(lambda m, x: F.normalize(x, dim=1))), image),
    "residual_scalar": (
        lambda: Wrapped(Fn(lambda m, x: x + x.sum((1, 2, 3), keepdim=True))),
        image,
    ),
    "output_is_input": (lambda: Fn(lambda m, x: x), image),
    "no_parameters": (lambda: nn.Flatten(), image),
    "single_conv": (lambda: nn.Conv2d(3, 4, 3), image),
    "inference_mode": (
        lambda: Wrapped(Fn(torch.inference_mode()(lambda m, x: m.a(x)), a=conv(8, 8))),
        image,
    ),
    "vector_linear": (
        lambda: Wrapped(
            Fn(
                lambda m, x: m.b(m.a(x.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2),
                a=nn.Linear(8, 12),
                b=nn.Linear(12, 8, bias=False),
            )
        ),
        image,
    ),
    "upsample_norm": (
        lambda: Wrapped(
            nn.Sequential(
                nn.Conv2d(8, 6, 1),
                nn.LocalResponseNorm(2),
                nn.Upsample(scale_factor=2),
                nn.Conv2d(6, 8, 1),
            )
        ),
        image,
    ),
    "blur_pool": (
        lambda: Wrapped(
            Fn(
                lambda m, x: F.conv2d(x, m.kernel, stride=2, groups=x.shape[1]),
                kernel=nn.Parameter(torch.rand(8, 1, 3, 3)),
            )
        ),
        image,
    ),
    "half_precision_inside": (
        lambda: Wrapped(Fn(lambda m, x: m.a(x.float()).to(x.dtype), a=nn.Conv2d(8, 8, 1))),
        image,
    ),
}


def _write_slice(x: Tensor) -> Tensor:
    x[:, :2] *= 0.5
    return x.relu()
