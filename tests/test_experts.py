"""Criteria for experts: what they watch is what the network does, and who they drop follows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_env import PruningTask
from prune_env.calibration.routing import Routing, measure_routing
from prune_env.calibration.statistics import calibrate
from prune_env.criteria.experts import EXPERT_CRITERIA, experts_of, frequency, reap
from prune_env.criteria.scorers import SCORERS, Evidence, score_groups
from prune_env.errors import DataError, ModelError
from prune_env.experiments import bench_experts
from prune_env.experiments.data.tokens import TokenBatches
from prune_env.pipeline.project import Project
from prune_env.quality.batches import Batch
from prune_env.structure.discover import find_groups
from prune_env.structure.groups import PrunableGroup

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "use_cache": False, "num_experts_per_tok": 2,
}  # fmt: skip
QWEN = {"num_experts": 6, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 6, "experts_implementation": "eager"}),
    "mixtral_grouped": ("Mixtral", {"num_local_experts": 6}),
    "qwen2_moe": ("Qwen2Moe", QWEN),  # gates are not renormalised; a shared expert beside
    "gpt_oss": ("GptOss", {"num_local_experts": 6, "head_dim": 8}),  # biases, transposed
}


def network(family: str, **options: Any) -> nn.Module:
    name, differences = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **differences, **options})
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        model: nn.Module = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        with torch.no_grad():  # fresh weights are small and biases zero: make experts differ
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batches(rows: int = 6, size: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    ids_NT = torch.randint(1, 64, (rows, 16), generator=generator)
    return [Batch({"input_ids": ids_BT}, ids_BT) for ids_BT in ids_NT.split(size)]


@dataclass(frozen=True)
class Case:
    model: nn.Module
    groups: tuple[PrunableGroup, ...]

    @property
    def paths(self) -> dict[str, str]:
        return experts_of(self.model, self.groups)


@cache
def case(family: str) -> Case:
    """A network with its live groups; do not change it."""
    model = network(family)
    found = find_groups(model, batches()[0].inputs)
    return Case(model, tuple(group for group in found if not group.frozen))


class Watched:
    """What modules of experts are called with and give, by path."""

    def __init__(self, model: nn.Module, paths: list[str]) -> None:
        self.calls: dict[str, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {p: [] for p in paths}
        handles = [
            model.get_submodule(path).register_forward_hook(self._hook(path), with_kwargs=True)
            for path in paths
        ]
        with torch.no_grad():
            for batch in batches():
                model(**batch.inputs)
        for handle in handles:
            handle.remove()

    def _hook(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            tokens, index, weights = (*args, *kwargs.values())
            self.calls[path].append((tokens, index, weights, output))

        return hook

    def joined(self, path: str) -> tuple[Tensor, ...]:
        return tuple(torch.cat(parts) for parts in zip(*self.calls[path], strict=True))


@pytest.mark.long
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_experts_are_found_with_the_module_of_their_parameters(family: str) -> None:
    paths = case(family).paths
    assert list(paths.values()) == [f"model.layers.{layer}.mlp.experts" for layer in (0, 1)]
    assert all(group.units == 6 for group in case(family).groups if group.name in paths)


@pytest.mark.long
@torch.no_grad()
def test_reap_is_its_formula_written_out_on_the_weights() -> None:
    one = case("mixtral")
    scores = score_groups("reap", one.model, one.groups, evidence(one))
    watched = Watched(one.model, list(one.paths.values()))
    for name, path in one.paths.items():
        tokens_NH, index_Nk, weights_Nk, _ = watched.joined(path)
        module: Any = one.model.get_submodule(path)
        for expert in range(6):
            total, count = 0.0, 0
            for token_H, chosen, weights in zip(tokens_NH, index_Nk, weights_Nk, strict=True):
                for place in (chosen == expert).nonzero().flatten().tolist():
                    gate, up = (module.gate_up_proj[expert] @ token_H).chunk(2)
                    made = module.down_proj[expert] @ (nn.functional.silu(gate) * up)
                    total, count = total + float(weights[place] * made.norm()), count + 1
            assert count
            assert float(scores[name][expert]) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_of_one_expert_per_token_the_output_is_all_there_is_to_know(family: str) -> None:
    """Then gate times norm is the norm of what the module gives, whatever the family computes."""
    model = network(family, num_experts_per_tok=1)
    paths = [f"model.layers.{layer}.mlp.experts" for layer in (0, 1)]
    watched = Watched(model, paths)
    for path, found in measure_routing(model, batches(), dict.fromkeys(paths, 6)).items():
        _, index_N1, _, output_NH = watched.joined(path)
        expected_U = torch.zeros(6).index_add(0, index_N1.flatten(), output_NH.norm(dim=1))
        assert torch.allclose(found.weighted_U, expected_U.double(), rtol=1e-5)
        assert torch.equal(found.chosen_U, index_N1.flatten().bincount(minlength=6).double())
        assert found.tokens == 6 * 16


def test_experts_run_in_groups_or_one_by_one_score_the_same() -> None:
    scores = [
        score_groups("reap", one.model, one.groups, evidence(one))
        for one in (case("mixtral"), case("mixtral_grouped"))
    ]
    for name in case("mixtral").paths:
        assert torch.allclose(scores[0][name], scores[1][name], rtol=1e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_shares_of_tokens_sum_to_the_experts_of_each(family: str) -> None:
    one = case(family)
    scores = score_groups("frequency", one.model, one.groups, evidence(one))
    for name in one.paths:
        assert float(scores[name].sum()) == pytest.approx(2)
        assert 0 <= float(scores[name].min()) <= float(scores[name].max()) <= 1


def test_how_the_data_are_split_does_not_matter() -> None:
    model, units = case("mixtral").model, dict.fromkeys(case("mixtral").paths.values(), 6)
    whole, parts = (measure_routing(model, batches(6, size), units) for size in (6, 2))
    for path in units:
        assert torch.equal(whole[path].chosen_U, parts[path].chosen_U)
        assert torch.allclose(whole[path].weighted_U, parts[path].weighted_U, rtol=1e-5)


def test_an_unused_expert_scores_nothing_and_a_mute_one_only_its_share() -> None:
    routing = Routing(torch.tensor([0.0, 3.0, 1.0]), torch.tensor([0.0, 0.0, 5.0]), 4)
    assert reap(routing).tolist() == [0, 0, 5]
    assert frequency(routing).tolist() == [0, 0.75, 0.25]


@pytest.mark.long
def test_a_mute_expert_goes_first_by_reap() -> None:
    model = network("mixtral")
    found = find_groups(model, batches()[0].inputs)
    group = next(group for group in found if group.name in experts_of(model, found))
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.experts.down_proj")[4] = 0
    statistics = calibrate(model, batches(), [group])
    given = Evidence(statistics, dict, batches=batches())
    scores = {name: score_groups(name, model, [group], given) for name in ("reap", "frequency")}
    assert group.pattern.order(scores["reap"][group.name])[-1] == 4
    assert float(scores["frequency"][group.name][4]) > 0


def test_the_network_is_left_as_it_was() -> None:
    model = network("mixtral").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_routing(model, batches(), {"model.layers.0.mlp.experts": 6})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def evidence(one: Case) -> Evidence:
    return Evidence(calibrate(one.model, batches(), one.groups), dict, batches=batches())


@pytest.mark.parametrize("criterion", sorted(EXPERT_CRITERIA))
def test_other_groups_are_scored_by_obs(criterion: str) -> None:
    one = case("mixtral")
    given = evidence(one)
    ours, obs = (score_groups(name, one.model, one.groups, given) for name in (criterion, "obs"))
    assert list(ours) == [group.name for group in one.groups]
    for group in one.groups:
        assert ours[group.name].shape == group.grid
        same = torch.equal(ours[group.name], obs[group.name])
        assert same == (group.name not in one.paths)


def test_without_any_expert_obs_takes_over_and_no_data_are_needed() -> None:
    one = case("mixtral")
    heads = [group for group in one.groups if group.name not in one.paths]
    given = Evidence(calibrate(one.model, batches(), heads), dict)
    ours, obs = (score_groups(name, one.model, heads, given) for name in ("reap", "obs"))
    assert all(torch.equal(ours[name], obs[name]) for name in obs)


@pytest.mark.long
@pytest.mark.parametrize("criterion", sorted(EXPERT_CRITERIA))
def test_a_task_drops_the_experts_that_score_least(criterion: str) -> None:
    one = case("mixtral")
    data = [(batch.inputs, batch.targets) for batch in batches(16, 4)]
    task = PruningTask.from_model(
        one.model, data, criterion=criterion, budget=0.9, calibration_samples=8, reward_samples=8
    )
    seen = [Batch(inputs, targets) for inputs, targets in data[:2]]
    given = Evidence(calibrate(one.model, seen, one.groups), dict, batches=seen)
    expected = score_groups(criterion, one.model, one.groups, given)
    orders: Any = task.evaluator.orders  # type: ignore[attr-defined]
    for name in one.paths:
        assert torch.equal(orders[name], expected[name].argsort(descending=True, stable=True))


def test_experts_without_data_are_an_error() -> None:
    one = case("mixtral")
    with pytest.raises(ModelError, match=r"Pass `batches` to `Evidence`"):
        score_groups("reap", one.model, one.groups, Evidence(evidence(one).calibration, dict))
    with pytest.raises(DataError, match="no batches"):
        measure_routing(one.model, [], {"model.layers.0.mlp.experts": 6})


class Whole(nn.Module):
    """Router and experts in one module: from outside nobody sees who was chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.up = nn.Linear(8, 4, bias=False), nn.Parameter(torch.randn(4, 8, 8))
        self.spare = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.up[self.router(x).argmax(-1)].mul(x[:, None]).sum(-1)


def test_experts_that_cannot_be_told_apart_are_an_error() -> None:
    model = nn.Sequential(Whole())
    data = [Batch(torch.randn(5, 8), torch.zeros(5))]
    with pytest.raises(ModelError, match=r"'0' is not called with .* but with \(5, 8\) float32"):
        measure_routing(model, data, {"0": 4})
    with pytest.raises(ModelError, match=r"'0.spare' was not called"):
        measure_routing(model, data, {"0.spare": 4})
    assert not model[0]._forward_pre_hooks


def test_experts_that_give_nan_are_an_error() -> None:
    model = network("mixtral")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.experts.down_proj")[:] = torch.nan
    with pytest.raises(ModelError, match=r"'model.layers.1.mlp.experts' give NaN"):
        measure_routing(model, batches(), {"model.layers.1.mlp.experts": 6})


def test_every_criterion_of_experts_has_a_name() -> None:
    assert set(EXPERT_CRITERIA) <= set(SCORERS)


def project(**options: Any) -> Project:
    """A network of experts that nobody trained, on tokens that mean nothing."""
    model = network("mixtral")
    ids_NT = torch.cat([batch.targets for batch in batches(24)])
    train = TokenBatches(ids_NT[:16], 4, shuffle=True)
    task = PruningTask.from_model(model, TokenBatches(ids_NT[:16], 4), name="tiny", **options)
    val = TokenBatches(ids_NT[16:], 4)
    return Project("tiny", model, task, train, val, val, lambda: network("mixtral"))


@pytest.mark.long
def test_the_bench_prints_a_table_and_json_last(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--task", "test_experts:project", "--dropped", "0,2,4", "--criteria", "reap,frequency",
        "--random-seeds", "2", "--calibration-rows", "8",
    ]  # fmt: skip
    assert bench_experts.main(arguments) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    figures = json.loads(lines[-1])
    assert figures["predicted_tokens"] == 8 * 15
    assert set(figures["experts"].values()) == {6}
    assert len(figures["rows"]) == 3 * (2 + 2)
    for row in figures["rows"]:
        assert all(len(gone) == row["dropped"] for gone in row["gone"].values())
        assert (row["kl"] < 1e-6) == (row["dropped"] == 0)
        if not row["dropped"]:
            assert row["loss"] == pytest.approx(figures["dense_loss"])
    table = [line for line in lines if line.startswith("|")]
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| reap", "| frequency", "| random, mean of 2 (best)",
    ]  # fmt: skip


def bare(**options: Any) -> PruningTask:
    """A task without a project around it."""
    return project(**options).task


@pytest.mark.long
def test_the_bench_wants_a_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_experts.main(["--task", "test_experts:bare", "--calibration-rows", "8"]) == 2
    assert "'test_experts:bare' has no experts" in capsys.readouterr().err
