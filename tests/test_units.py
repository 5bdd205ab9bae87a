"""Every kind of unit goes through the same task and the same environments."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import counted_macs, counted_size

from prune_env.attention.attach import sparsify_attention
from prune_env.errors import BudgetError, GroupError, ModelError
from prune_env.mdp.candidates import CandidateEvaluator
from prune_env.mdp.env import PlanEnv, PlanningEnv, PruneEnv
from prune_env.mdp.task import FEATURES, PruningTask, State
from prune_env.plan.cut import compact
from prune_env.plan.cut import masked as masked_model
from prune_env.plan.plan import PruningPlan
from prune_env.structure.options import constrain
from prune_env.units import groups_of

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "intermediate_size": 48, "max_position_embeddings": 32, "initializer_range": 0.3,
}  # fmt: skip
"""Weights so large that what a token reads shows in the logits."""
KINDS = {
    "structured": 0.6, "sublayers": 0.7, "unstructured": 0.5, "per_row": 0.5, "2:4": 0.7,
    "block:8": 0.6, "structured+sublayers": 0.5, "sublayers+unstructured": 0.4, "density": 0.93,
    "structured+density": 0.7, "sublayers+density": 0.6, "structured+sublayers+density": 0.5,
}  # fmt: skip
"""Kind of unit, and a budget of MACs that it can reach in both models."""
FAMILIES = ("mistral", "bert")
WEIGHTS = ("unstructured", "per_row", "2:4", "block:8", "sublayers+unstructured")
"""Kinds whose cost is theoretical: no counter sees zeros."""


@cache
def network(name: str, backend: str = "") -> Any:
    """A small random transformer; with a backend, its attention is block sparse and complete."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "mistral":
            config = transformers.MistralConfig(**SIZES, num_key_value_heads=2, use_cache=False)
            model = transformers.MistralForCausalLM(config).eval()
        else:
            config = transformers.BertConfig(**SIZES)
            model = transformers.BertForSequenceClassification(config).eval()
    return sparsify_attention(model, backend=backend, block=4, random=8) if backend else model


def network_for(name: str, kind: str) -> Any:
    return network(name, "gather" if "density" in kind else "")


def batches(name: str) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(4):
        ids = torch.randint(5, 64, (8, 32), generator=generator)
        classes = torch.randint(0, 2, (8,), generator=generator)
        found.append({"input_ids": ids, "labels": ids if name == "mistral" else classes})
    return found


@cache
def task(name: str, kind: str) -> PruningTask:
    return PruningTask.from_model(
        network_for(name, kind),
        batches(name),
        units=kind,
        budget=KINDS[kind],
        calibration_samples=16,
        reward_samples=16,
        precision="float32",
    )


def run(model: nn.Module, length: int = 32) -> Tensor:
    ids = torch.randint(5, 64, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(input_ids=ids).logits
    assert isinstance(found, Tensor)
    return found


def finish(env: PlanningEnv, sparsity: float) -> None:
    env.reset(seed=0)
    done = False
    while not done:
        action = np.full(env.action_space.shape or (), sparsity, dtype=np.float32)
        observation, reward, done, _, info = env.step(action)
        assert env.observation_space.contains(observation)
    assert np.isfinite(reward)
    assert info["flops_ratio"] <= env.task.budget + 1e-9


def drawn(task: PruningTask, seed: int) -> tuple[int, ...]:
    """Any level of every group, within the budget."""
    generator = np.random.default_rng(seed)
    return task.decode(generator.random(task.length).tolist())


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_episodes_give_plans_within_the_budget(name: str, kind: str) -> None:
    of = task(name, kind)
    model, before = network_for(name, kind), run(network_for(name, kind))
    for env, sparsity in ((PruneEnv(of), 0.0), (PlanEnv(of), 0.9)):
        finish(env, sparsity)
        plan = env.plan
        kept = tuple(plan.levels[group.name] for group in of.groups)
        assert of.within_budget(kept)
        assert kept != tuple(group.units for group in of.groups)
        small = compact(model, PruningPlan.from_json(plan.to_json()))
        assert run(small).shape == before.shape
        assert isinstance(of.evaluator, CandidateEvaluator)
        expected = run(of.evaluator.candidate(kept))
        assert torch.equal(run(env.network()), expected)  # nothing here is repaired from data
    assert torch.equal(run(model), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_kinds_compose_by_law(name: str, kind: str) -> None:
    """Masked is compact, and costs are what an independent count says, in any mixture of levels."""
    of, model = task(name, kind), network_for(name, kind)
    inputs = {"input_ids": batches(name)[0]["input_ids"]}
    for seed in range(3):
        kept = drawn(of, seed)
        plan = of.plan(kept)
        small = compact(model, plan)
        with masked_model(model, plan):
            torch.testing.assert_close(run(small), run(model), atol=1e-4, rtol=1e-4)
        macs, params, _ = of.costs(kept)
        if kind in WEIGHTS:
            assert macs < of.costs.effective(kept)[0] or kept == of.costs.units.tolist()
        else:
            assert macs == pytest.approx(counted_macs(small, inputs), rel=1e-9)
            assert params == counted_size(small)[0]
            assert of.costs.effective(kept).tolist() == of.costs(kept).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_branch_and_the_units_inside_it_go_together(name: str) -> None:
    """With its branch gone, what its other units keep changes neither outputs nor costs."""
    of = task(name, "structured+sublayers")
    branches = [n for n, group in enumerate(of.groups) if group.min_keep == 0]
    assert len(branches) == 4
    assert isinstance(of.evaluator, CandidateEvaluator)
    for number in branches:
        tensors = {axis.tensor for axis in of.groups[number].axes}
        kept = np.array([group.units for group in of.groups])
        kept[number] = 0
        whole, price = run(of.evaluator.candidate(kept.tolist())), of.costs(kept)
        for other, group in enumerate(of.groups):
            if other not in branches and {a.tensor for a in group.axes} & tensors:
                kept[other] = group.levels[0]
        assert kept.sum() < sum(group.units for group in of.groups) - 1
        torch.testing.assert_close(run(of.evaluator.candidate(kept.tolist())), whole)
        assert of.costs(kept).tolist() == price.tolist()


def test_places_without_a_unit_are_not_observed() -> None:
    """All blocks weigh the same, so half of the 36 below the diagonal are half of the mass."""
    of = task("mistral", "density")
    seen = dict(zip(FEATURES, of.observe(State()).tolist(), strict=True))
    assert seen["mass_lost_50"] == 0.5
    assert seen["mass_lost_25"] == 0.25
    assert seen["cost_share"] == pytest.approx(of.costs.share(0))


def test_all_or_nothing_rounds_the_bounds() -> None:
    groups = groups_of("sublayers", network("bert"), {"input_ids": batches("bert")[0]["input_ids"]})
    assert {group.levels for group in constrain(groups, max_sparsity=0.9)} == {(0, 1)}
    assert {group.levels for group in constrain(groups, max_sparsity=0.4)} == {(1,)}
    assert {group.levels for group in constrain(groups, min_sparsity=0.9)} == {(0,)}


@pytest.mark.parametrize("kind", ["structured+2:4", "unstructured+structured"])
def test_single_weights_of_tensors_that_are_cut_are_refused(kind: str) -> None:
    with pytest.raises(GroupError, match=r"cannot be combined.*Prune in two runs"):
        groups_of(kind, network("bert"), {"input_ids": batches("bert")[0]["input_ids"]})


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("density", ModelError, "no block masks"),
        ("unstructured+2:4", GroupError, "twice"),
        ("heads", GroupError, "no kind of weight group 'heads'"),
        ("block:7", GroupError, "not a multiple of 7"),
    ],
)
def test_kinds_that_do_not_fit(kind: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        groups_of(kind, network("bert"), {"input_ids": batches("bert")[0]["input_ids"]})


def test_a_budget_that_the_kind_cannot_reduce_is_refused() -> None:
    with pytest.raises(BudgetError, match="params cannot be reached"):
        PruningTask.from_model(
            network("bert", "gather"), batches("bert"), units="density", on="params",
            calibration_samples=16, reward_samples=16,
        )  # fmt: skip
