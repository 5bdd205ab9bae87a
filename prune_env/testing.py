"""Toy networks, a toy task and conformance checks, for our tests and for yours.

Every toy is small, runs in milliseconds, and holds one kind of coupling. `TOYS` maps a name to a
factory; `toy_inputs(name)` gives two samples for it.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_env.costs.model import CostBuilder, CostModel
from prune_env.mdp.candidates import TaskOptions
from prune_env.mdp.evaluator import OfFunction
from prune_env.mdp.leftover import leftover_named
from prune_env.mdp.task import PruningTask
from prune_env.quality.evaluators import Metrics
from prune_env.search.ledger import Ledger
from prune_env.search.workers import IN_PROCESS, Workers, opened
from prune_env.structure.groups import Axis, PrunableGroup, Span
from prune_env.structure.inputs import Inputs


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU; same spatial size."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Chain(nn.Module):
    """Two convolutions, flatten into two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3, padding=1))
        self.hidden, self.head = nn.Linear(6 * 4 * 4, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.features(x).relu().flatten(1))))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two residual blocks, the second with a projection shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a1, self.a2 = conv(8, 6), nn.Conv2d(6, 8, 3, padding=1)
        self.b1, self.b2 = conv(8, 10), nn.Conv2d(10, 12, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.a2(self.a1(x)))
        x = F.relu(self.shortcut(x) + self.b2(self.b1(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class PaddedShortcut(nn.Module):
    """The option A shortcut of CIFAR ResNets: stride and zero-padded channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a1 = conv(3, 8), conv(8, 12)
        self.a2 = nn.Conv2d(12, 16, 3, padding=1, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(F.relu(short + self.a2(self.a1(x))).mean((2, 3)))  # type: ignore[no-any-return]


class DepthwiseConcat(nn.Module):
    """A depthwise separable branch concatenated with a plain one (DenseNet, Inception)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.depthwise, self.pointwise = conv(8, 8, groups=8), conv(8, 6, 1)
        self.plain, self.mix = conv(8, 4), conv(18, 10, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        both = torch.cat([self.pointwise(self.depthwise(x)), self.plain(x), x], 1)
        return self.head(self.mix(both).mean((2, 3)))  # type: ignore[no-any-return]


class Grouped(nn.Module):
    """A ResNeXt block: 1x1, grouped 3x3, 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow = conv(3, 8), conv(8, 12, 1)
        self.grouped, self.wide = conv(12, 24, groups=6), conv(24, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.wide(self.grouped(self.narrow(x)))).mean((2, 3)))  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    """An inverted bottleneck with a squeeze-and-excite gate (EfficientNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = conv(3, 8), conv(8, 16, 1)
        self.depthwise = conv(16, 16, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head((x + self.project(y * gate)).mean((2, 3)))  # type: ignore[no-any-return]


class ChannelShuffle(nn.Module):
    """A ShuffleNetV2 unit: split, transform one half, concatenate, shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.branch = nn.Sequential(conv(8, 12, 1), conv(12, 12, groups=12), conv(12, 8, 1))
        self.mix, self.head = conv(16, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return self.head(self.mix(x.reshape(batch, channels, height, width)).mean((2, 3)))  # type: ignore[no-any-return]


class GroupedShuffle(nn.Module):
    """A ShuffleNetV1 unit: grouped 1x1, shuffle, depthwise, grouped 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = conv(3, 8), conv(8, 16, 1, groups=2)
        self.depthwise, self.second = conv(16, 16, groups=16), conv(16, 8, 1, groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.first(x)
        y = y.view(y.shape[0], 2, -1, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head((x + self.second(self.depthwise(y))).mean((2, 3)))  # type: ignore[no-any-return]


class PixelShuffle(nn.Module):
    """Super-resolution: channels become space."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.widen = conv(3, 8), nn.Conv2d(8, 24, 3, padding=1)
        self.up, self.last = nn.PixelShuffle(2), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.up(self.widen(self.features(x)))))  # type: ignore[no-any-return]


class LastChannels(nn.Module):
    """A ConvNeXt block: depthwise, channels last, LayerNorm, MLP, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
        )
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 20), nn.Linear(20, 8)
        self.scale = nn.Parameter(1e-6 * torch.ones(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head((x + y).mean((2, 3)))  # type: ignore[no-any-return]


class TwoInputs(nn.Module):
    """Two named inputs, one of them gating the other; a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.extra = conv(3, 8), nn.Linear(4, 8)
        self.mix, self.head = conv(8, 6), nn.Linear(6, 5)

    def forward(self, image: Tensor, extra: Tensor) -> dict[str, Tensor]:
        gate = torch.sigmoid(self.extra(extra))[:, :, None, None]
        return {"logits": self.head(self.mix(self.image(image) * gate).mean((2, 3)))}


TOYS: dict[str, Callable[[], nn.Module]] = {
    "chain": Chain,
    "residual": Residual,
    "padded_shortcut": PaddedShortcut,
    "depthwise_concat": DepthwiseConcat,
    "grouped": Grouped,
    "squeeze_excite": SqueezeExcite,
    "channel_shuffle": ChannelShuffle,
    "grouped_shuffle": GroupedShuffle,
    "pixel_shuffle": PixelShuffle,
    "last_channels": LastChannels,
    "two_inputs": TwoInputs,
}


def toy_model(name: str, seed: int = 0) -> nn.Module:
    """The toy called `name` in eval mode, with random weights and BatchNorm statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TOYS[name]().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for vector in (module.weight, module.running_var):
                    nn.init.uniform_(vector, 0.5, 1.5)  # type: ignore[arg-type]
                for vector in (module.bias, module.running_mean):
                    nn.init.normal_(vector, std=0.3)  # type: ignore[arg-type]
    return model


def toy_inputs(name: str, seed: int = 0, batch: int = 2) -> Inputs:
    """Random inputs for the toy called `name`."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, 8, 8, generator=generator)
    if name == "two_inputs":
        return {"image": image, "extra": torch.randn(batch, 4, generator=generator)}
    return image


def toy_task(
    target: float | Sequence[float] = 0.35,
    length: int = 4,
    width: int = 20,
    budget: float = 1.0,
    **options: Any,
) -> PruningTask:
    """A task without a network that pays `-mean |sparsity - target|`: any learner must solve it.

    Args:
        target: the sparsity that is best for every group, or one for each. With the budget
            given back (the default) only a target that spends it can be reached.
        length: number of groups.
        width: units per group.
        budget: fraction of the cost that may remain; a chain of equally wide layers is priced.
        options: `leftover`; other task options have no effect.
    """
    leftover = leftover_named(TaskOptions.of(options).leftover)
    targets = [target] * length if isinstance(target, float) else list(target)
    length = len(targets)
    groups = tuple(_toy_group(number, width) for number in range(length))
    shapes = [(width, width)] * length
    costs = _toy_costs(groups, shapes)

    scores = {group.name: torch.arange(width, 0, -1, dtype=torch.float64) for group in groups}
    evaluator = OfFunction(partial(_toy_metrics, tuple(targets), width))
    return PruningTask(groups, costs, evaluator, scores, budget, name="toy", leftover=leftover)


def _toy_metrics(targets: Sequence[float], width: int, kept: tuple[int, ...]) -> Metrics:
    pairs = zip(kept, targets, strict=True)
    error = sum(abs(1 - k / width - t) for k, t in pairs) / len(kept)
    return Metrics(figure=1 - error, loss=error, divergence=error, samples=1)


def _toy_group(number: int, units: int) -> PrunableGroup:
    axis = Axis(f"layer{number}.weight", (0,), (Span(0, 1),), (units,), "out")
    return PrunableGroup(f"layer{number}", (units,), (axis,), min_keep=0, verified=True)


def _toy_costs(groups: Sequence[PrunableGroup], shapes: Sequence[tuple[int, ...]]) -> CostModel:
    """Each layer costs its kept units, and one extra constant layer never changes."""
    builder = CostBuilder(groups)
    for group, shape in zip(groups, shapes, strict=True):
        builder.add(group.axes[0].tensor, shape, (1.0, 1.0, 4.0))
    builder.add_product(frozenset(), 1.0)
    return builder.finish()


SearchFunction = Callable[[Ledger, int], None]


def check_searcher(
    search: SearchFunction, evaluations: int = 24, seed: int = 3, workers: int | Workers = 1
) -> None:
    """The contract of a searcher, as a test: run it on yours.

    Checks that it spends at most what it is given and measures something, that its result meets the
    budget (plans beyond it are probes), that it finds the same plans again under the same seed, and
    goes on from a journal that was cut short and from a random half of one.

    Args:
        search: the searcher.
        evaluations: that it may spend.
        seed: of the searcher.
        workers: also checks that so many processes find what one finds.

    Raises:
        AssertionError: says which clause is broken.
    """
    task = toy_task(budget=0.6)
    first = _searched(search, task, evaluations, seed)
    assert first.spent, "it measured no plan"
    assert first.charged <= evaluations, f"charged {first.charged} of {evaluations} evaluations"
    for outcome in first.history:
        within = task.within_budget(outcome.kept)
        assert within or not outcome.eligible, f"{outcome.kept} exceeds the budget"
    assert first.best.eligible, "nothing that it measured may be the result"
    again = _searched(search, task, evaluations, seed)
    assert again.history == first.history, "one seed gave two searches"
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal.jsonl"
        _searched(search, task, evaluations, seed, journal)
        lines = journal.read_text().splitlines(keepends=True)
        # As if killed half-way, in the middle of writing a line; then any half of the rows.
        torn = "".join(lines[: len(lines) // 2]) + lines[-1][:5]
        rows = random.Random(seed).sample(lines[1:], len(lines) // 2)
        for text in (torn, lines[0] + "".join(rows)):
            journal.write_text(text)
            resumed = _searched(search, task, evaluations, seed, journal)
            assert resumed.history == first.history, "resuming changed the search"
    with opened(workers) as side_by_side:
        beside = _searched(search, task, evaluations, seed, workers=side_by_side)
    assert beside.history == first.history, "workers changed the search"


def _searched(
    search: SearchFunction, task: PruningTask, limit: int, seed: int, journal: Path | None = None,
    workers: Workers = IN_PROCESS,
) -> Ledger:  # fmt: skip
    ledger = Ledger(task, limit, journal, workers=workers)
    ledger.run(search, seed)
    return ledger
