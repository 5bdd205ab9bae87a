"""Keep masks: what was removed is zero after every step, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from prune_env.deploy.bundle import save
from prune_env.errors import ConfigError, ModelError, PlanError, RunError
from prune_env.plan.cut import compact
from prune_env.plan.plan import PruningPlan
from prune_env.recovery import FinetuneSettings, KeepMasks, finetune
from prune_env.structure.discover import find_groups
from prune_env.structure.weights import weight_groups

OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 0.5, max_iter=3),
}


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8, bias=False)
        return nn.Sequential(*layers, nn.Tanh(), nn.Linear(8, 3))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(12, 6, generator=generator), torch.arange(12) % 3


def random_masks(model: nn.Module, share: float, seed: int) -> KeepMasks:
    """Masks of every parameter, vectors too, each weight kept with this probability."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    return KeepMasks({n: torch.rand(s, generator=generator) < share for n, s in shapes.items()})


def holds(masks: KeepMasks, model: nn.Module) -> bool:
    """Whether every removed weight is exactly zero, seen from the outside."""
    return all(not bool(model.get_parameter(n)[~m].any()) for n, m in masks.keep.items())


def step(model: nn.Module, *optimisers: Optimizer) -> None:
    x, y = data()

    def loss() -> Tensor:
        for optimiser in optimisers:
            optimiser.zero_grad()
        value = F.cross_entropy(model(x), y)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    loss()
    for optimiser in optimisers:
        optimiser.step(loss if isinstance(optimiser, torch.optim.LBFGS) else None)  # type: ignore[arg-type]


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- inside the block


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
@given(share=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=6)
def test_removed_weights_are_zero_after_every_step(name: str, share: float, seed: int) -> None:
    """The optimiser's momentum was gathered without masks: it would move them first of all."""
    model, masks = net(), random_masks(net(), share, seed)
    optimiser = OPTIMISERS[name](list(model.parameters()))
    step(model, optimiser)
    with masks.kept(model):
        assert holds(masks, model)
        for _ in range(3):
            step(model, optimiser)
            assert holds(masks, model)
    assert holds(masks, model)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_masks_that_keep_everything_change_no_bit(name: str) -> None:
    free, held = net(), net()
    everything = random_masks(held, 2.0, 0)
    optimisers = [OPTIMISERS[name](list(m.parameters())) for m in (free, held)]
    with everything.kept(held):
        for _ in range(3):
            step(held, optimisers[1])
    for _ in range(3):
        step(free, optimisers[0])
    assert same(free, held)


@given(share=st.floats(0.1, 0.9), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_kept_weights_move_as_in_a_network_of_kept_weights_alone(share: float, seed: int) -> None:
    """Against a network that multiplies its weights by the mask, clipped norms included."""
    model, reference = net().double(), net().double()
    masks = random_masks(model, share, seed)
    x, y = (data()[0].double(), data()[1])
    masks.apply_to(reference)
    optimisers = [
        torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
        for m in (model, reference)
    ]
    with masks.kept(model):
        for _ in range(3):
            for network, optimiser in zip((model, reference), optimisers, strict=True):
                optimiser.zero_grad()
                weights = {
                    n: p * masks.keep[n] if network is reference else p
                    for n, p in network.named_parameters()
                }
                logits = torch.func.functional_call(network, weights, (x,))
                F.cross_entropy(logits, y).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(network.parameters(), 0.05)
                optimiser.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_every_optimiser_counts_and_none_has_to_be_named() -> None:
    model = net()
    masks = random_masks(model, 0.5, 0)
    first, second = list(model[0].parameters()), list(model[3:].parameters())
    early = OPTIMISERS["sgd"](first)
    with masks.kept(model):
        late = OPTIMISERS["adamw"](second)
        for _ in range(3):
            step(model, early, late)
            assert holds(masks, model)


def test_a_gradient_scaler_and_a_running_average_keep_zeros() -> None:
    model = net()
    masks, scaler = random_masks(model, 0.5, 0), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimiser = OPTIMISERS["adamw"](list(model.parameters()))
    x, y = data()
    with masks.kept(model):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        for _ in range(3):
            optimiser.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            scaler.step(optimiser)
            scaler.update()
            average.update_parameters(model)
            assert holds(masks, model)
            assert holds(masks, average.module)


def test_a_removed_weight_of_nan_or_infinity_is_zero() -> None:
    model = net()
    with torch.no_grad():
        model[3].weight[0] = torch.tensor([torch.nan, torch.inf, -torch.inf, *[1.0] * 5])
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[0, :3] = False
    KeepMasks({"3.weight": mask}).apply_to(model)
    assert model[3].weight[0].tolist() == [0.0] * 3 + [1.0] * 5


def test_masks_may_be_replaced_between_steps() -> None:
    """More weights go while training (gradual pruning), then others come back (regrowth)."""
    model = net()
    optimiser = OPTIMISERS["sgd"](list(model.parameters()))
    few, many = random_masks(model, 0.8, 1), random_masks(model, 0.4, 1)
    for masks in (few, many, few):
        with masks.kept(model):
            for _ in range(2):
                step(model, optimiser)
                assert holds(masks, model)
    assert not holds(many, model)
    with few.kept(model), many.kept(model):
        step(model, optimiser)
        assert holds(few & many, model)


def test_an_error_inside_leaves_zeros_and_no_hook() -> None:
    model = net()
    masks = random_masks(model, 0.5, 0)

    def fails() -> None:
        with masks.kept(model):
            with torch.no_grad():
                model[0].weight.fill_(1.0)  # no optimiser: only leaving mends it
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert holds(masks, model)
    step(model, OPTIMISERS["sgd"](list(model.parameters())))
    assert not holds(masks, model)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"0.bias": torch.ones(9, dtype=torch.bool)}, r"'0\.bias'.*\(9,\).*\(8,\)"),
        ({"0.bias": torch.ones(8)}, "torch.float32"),
        ({"module.0.bias": torch.ones(8, dtype=torch.bool)}, "nothing there.*wrapper"),
        ({"1.running_mean": torch.ones(8, dtype=torch.bool)}, "nothing there"),
    ],
)
def test_masks_of_another_network_are_refused(keep: dict[str, Tensor], words: str) -> None:
    before = copy.deepcopy(model := net())
    with pytest.raises(ModelError, match=words), KeepMasks(keep).kept(model):
        pytest.fail("entered")
    assert same(before, model)
    x, y = data()
    with pytest.raises(ModelError, match=words):
        finetune(model, [(x, y)], [(x, y)], masks=KeepMasks(keep))


# ---- where masks come from


def test_a_plan_is_no_masks(tmp_path: Path) -> None:
    model, (x, y) = net(), data()
    plan = PruningPlan.uniform(model, find_groups(model, x), 0.0)
    with pytest.raises(ConfigError, match=r"give keep masks, such as KeepMasks\.of_plan"):
        finetune(model, [(x, y)], [(x, y)], masks=plan)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"give keep masks, such as KeepMasks\.of_plan"):
        save(tmp_path, model, plan, masks=plan)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_network_keeps_the_zeros_of_matrices_that_are_not_all_zero() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[2] = 0.0
        model[3].weight.zero_()  # the beginning of something
        model[5].bias.zero_()  # as most biases begin
    masks = KeepMasks.of_network(model)
    assert list(masks.keep) == ["0.weight"]
    assert masks.removed == 6
    assert "6 of 48 weights of 1 tensors" in repr(masks)
    assert KeepMasks.of_network(net()).keep == {}


class Two(nn.Module):
    """A convolution to be cut and matrices to be thinned; the head reads with the hidden matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.hidden, self.again = nn.Linear(24, 24), nn.Linear(24, 24)
        self.again.weight = self.hidden.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.conv(x).relu()).relu().flatten(1)
        return self.again(self.hidden(x).relu())  # type: ignore[no-any-return]


def _two() -> tuple[nn.Module, tuple[Any, ...], Tensor]:
    torch.manual_seed(0)
    model, x = Two(), torch.randn(2, 3, 6, 6)
    cut = tuple(g for g in find_groups(model, x) if g.name in ("conv", "wide"))
    return model, cut, x


def test_a_plan_that_cuts_and_thins_one_tensor_gives_masks_of_the_cut_shape() -> None:
    """Tied matrices have one mask, under the name that the plan knows."""
    model, cut, _ = _two()
    thin = weight_groups(model, ignore=("hidden", "again"), heads=())
    plan = PruningPlan.uniform(model, [*cut, *thin], 0.5)
    small = compact(model, plan)
    masks = KeepMasks.of_plan(plan, small)
    assert set(masks.keep) == {"conv.weight", "wide.weight"}
    for name, mask in masks.keep.items():
        assert 0 < int(mask.sum()) < mask.numel()
        assert mask.shape == small.get_parameter(name).shape
        assert torch.equal(mask, small.get_parameter(name) != 0)
    with pytest.raises(PlanError, match="the shape"):
        KeepMasks.of_plan(plan, model)


def test_a_network_cut_first_and_thinned_then_keeps_both() -> None:
    model, cut, x = _two()
    small = compact(model, PruningPlan.uniform(model, cut, 0.5))
    plan = PruningPlan.uniform(small, weight_groups(small, "unstructured", ignore=("again",)), 0.5)
    sparse = compact(small, plan)
    masks = KeepMasks.of_plan(plan, sparse)
    assert {n: m.tolist() for n, m in KeepMasks.of_network(sparse).keep.items()} == {
        n: m.tolist() for n, m in masks.keep.items()
    }
    assert all(sparse.get_parameter(n).shape == m.shape for n, m in masks.keep.items())
    optimiser = OPTIMISERS["adamw"](list(sparse.parameters()))
    with masks.kept(sparse):
        for _ in range(3):
            optimiser.zero_grad()
            sparse(x).square().sum().backward()
            optimiser.step()
            assert holds(masks, sparse)


def test_a_mask_of_a_tied_matrix_holds_under_either_name() -> None:
    for name in ("hidden.weight", "again.weight"):
        model, _, x = _two()
        masks = KeepMasks({name: torch.rand(24, 24) < 0.5})
        optimiser = OPTIMISERS["sgd"](list(model.parameters()))
        with masks.kept(model):
            model(x).square().sum().backward()
            optimiser.step()
            assert holds(masks, model)


def test_a_plan_may_empty_a_matrix_wholly() -> None:
    model = net()
    plan = PruningPlan(weight_groups(model, layers=("3",), heads=()), {"3.weight": ()})
    small = compact(model, plan)
    masks = KeepMasks.of_plan(plan, small)
    assert masks.emptied == ("3.weight",)
    chosen = FinetuneSettings(epochs=2, learning_rate=0.1)
    for held in (None, masks):
        tuned = finetune(small, *loaders(), settings=chosen, masks=held)
        assert tuned.best_epoch > 0
        assert not tuned.model.get_parameter("3.weight").any()
    assert all(p.requires_grad for p in model.parameters())


# ---- kept in files


@given(share=st.floats(0, 1), seed=st.integers(0, 99))
def test_packed_masks_come_back(share: float, seed: int) -> None:
    masks = random_masks(net(), share, seed)
    again = KeepMasks.of_packed(masks.packed())
    assert masks.keep.keys() == again.keep.keys()
    assert all(torch.equal(masks.keep[name], again.keep[name]) for name in masks.keep)
    assert masks.digest == again.digest
    other = random_masks(net(), share, seed + 1)
    equal = all(torch.equal(masks.keep[name], other.keep[name]) for name in masks.keep)
    assert (masks.digest == other.digest) == equal


@pytest.mark.parametrize(
    "stored",
    [
        {"a": torch.zeros(1, dtype=torch.uint8)},
        {"a": torch.zeros(2, dtype=torch.uint8), "shape of a": torch.tensor([2, 4])},
        {"a": torch.zeros(1), "shape of a": torch.tensor([2, 4])},
        {"a": torch.zeros(0, dtype=torch.uint8), "shape of a": torch.tensor([-1])},
        {"a": torch.zeros(1, dtype=torch.uint8), "shape of a": torch.tensor([-2, -4])},
        {"a": torch.zeros(1, dtype=torch.uint8), "shape of a": torch.tensor([2.0, 4.0])},
        {"a": torch.zeros(1, dtype=torch.uint8), "shape of a": torch.tensor(8)},
        {"a": torch.zeros(1, 1, dtype=torch.uint8), "shape of a": torch.tensor([2, 4])},
    ],
)
def test_damaged_masks_are_refused(stored: dict[str, Tensor]) -> None:
    with pytest.raises(PlanError, match="keep mask of 'a'"):
        KeepMasks.of_packed(stored)


# ---- fine-tuning


def sparse_net() -> nn.Sequential:
    model = net()
    KeepMasks({"0.weight": torch.rand(8, 6) < 0.5, "3.weight": torch.rand(8, 8) < 0.5}).apply_to(
        model
    )
    return model


def loaders() -> Any:
    x, y = data()
    return [(x, y)] * 2, [(x, y)]


class Killed(BaseException):
    pass


def test_a_resumed_tuning_has_the_bits_and_the_zeros_of_one_that_was_not_stopped(
    tmp_path: Path,
) -> None:
    model, chosen = sparse_net(), FinetuneSettings(epochs=3, learning_rate=0.1)
    whole = finetune(model, *loaders(), settings=chosen)

    def kill(record: Any) -> None:
        if record.epoch == 1:
            raise Killed

    file = tmp_path / "tune.pt"
    with pytest.raises(Killed):
        finetune(model, *loaders(), settings=chosen, checkpoint=file, on_epoch=kill)
    again = finetune(model, *loaders(), settings=chosen, checkpoint=file)
    assert same(whole.model, again.model)
    assert whole.best_epoch > 0
    assert holds(KeepMasks.of_network(model), again.model)
    for name, value in again.last.items():
        mask = again.masks.keep.get(name)
        assert mask is None or not value[~mask].any()


def test_a_checkpoint_made_with_other_masks_is_refused(tmp_path: Path) -> None:
    file, model = tmp_path / "tune.pt", sparse_net()
    finetune(model, *loaders(), settings=FinetuneSettings(epochs=1), checkpoint=file)
    with pytest.raises(RunError, match="masks"):
        finetune(
            model, *loaders(), settings=FinetuneSettings(epochs=1), checkpoint=file,
            masks=KeepMasks({}),
        )  # fmt: skip


def test_masks_that_are_said_replace_the_zeros_found() -> None:
    model, chosen = sparse_net(), FinetuneSettings(epochs=2, learning_rate=0.1)
    free = finetune(model, *loaders(), settings=chosen, masks=KeepMasks({}))
    assert free.best_epoch > 0
    assert not holds(KeepMasks.of_network(model), free.model)
    ticket = random_masks(model, 0.5, 3)
    held = finetune(model, *loaders(), settings=chosen, masks=ticket)
    assert holds(ticket, held.model)
    assert held.masks is ticket


class Adapter(nn.Module):
    """A matrix beside two thin ones, the second of which begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(6, 3), nn.Linear(6, 2), nn.Linear(2, 3)
        nn.init.zeros_(self.up.weight)
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))  # type: ignore[no-any-return]


def test_a_matrix_that_begins_at_zero_learns() -> None:
    tuned = finetune(Adapter(), *loaders(), settings=FinetuneSettings(epochs=2, learning_rate=0.1))
    assert tuned.best_epoch > 0
    assert tuned.model.get_parameter("up.weight").any()
