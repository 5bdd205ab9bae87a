"""Pruned transformers on disk: the same outputs back, from our folder and from plain ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_env.deploy.bundle import WEIGHTS, load, save
from prune_env.deploy.pretrained import export_padded, export_pretrained, fitting_config
from prune_env.errors import ModelError, PlanError, RunError
from prune_env.plan.cut import compact
from prune_env.plan.plan import PruningPlan, rank_units
from prune_env.storage import load_described, load_tensors, save_tensors
from prune_env.structure.discover import find_groups
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.sublayers import sublayer_groups
from prune_env.testing import toy_model

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip


def mistral() -> nn.Module:
    config = transformers.MistralConfig(
        **SIZES, num_key_value_heads=2, sliding_window=None, tie_word_embeddings=True, head_dim=8
    )
    return transformers.MistralForCausalLM(config)


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))


FACTORIES: dict[str, Callable[[], nn.Module]] = {"mistral": mistral, "bert": bert}
MLP = "mlp", "intermediate"


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(0))}


@cache
def found(name: str) -> tuple[nn.Module, tuple[PrunableGroup, ...]]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = FACTORIES[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model, tuple(g for g in find_groups(model, tokens()) if not g.frozen)


def pruned(
    name: str, keeps: Callable[[int, PrunableGroup], float]
) -> tuple[nn.Module, PruningPlan]:
    """A pruned model whose weights no factory makes, and its plan."""
    model, groups = found(name)
    levels = [group.nearest_level(keeps(n, group) * group.units) for n, group in enumerate(groups)]
    plan = PruningPlan.of_levels(groups, levels, rank_units(model, groups))
    small = compact(model, plan)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(1.01)
    return small.eval(), plan


def half(number: int, group: PrunableGroup) -> float:
    return 0.5


def uneven(number: int, group: PrunableGroup) -> float:
    return 0.25 + 0.5 * (number % 2)


def only_neurons(number: int, group: PrunableGroup) -> float:
    return 0.5 if group.units == SIZES["intermediate_size"] else 1.0


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(**tokens()).logits


def auto(name: str, folder: Path) -> nn.Module:
    return type(found(name)[0]).from_pretrained(folder)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("keeps", [half, uneven])
def test_our_folder_needs_no_factory(name: str, keeps: Any, tmp_path: Path) -> None:
    small, plan = pruned(name, keeps)
    save(tmp_path, small, plan, {"why": "test"})
    for again in (load(tmp_path), load(tmp_path, FACTORIES[name])):
        assert torch.equal(logits(again), logits(small))
        assert sum(p.numel() for p in again.parameters()) == sum(
            p.numel() for p in small.parameters()
        )


def test_tied_weights_are_written_once_and_come_back_tied(tmp_path: Path) -> None:
    small, plan = pruned("mistral", half)
    save(tmp_path, small, plan)
    assert sum(t.numel() for t in load_tensors(tmp_path / WEIGHTS).values()) == sum(
        p.numel() for p in small.parameters()
    )
    again: Any = load(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight


def test_the_precision_comes_back(tmp_path: Path) -> None:
    small, plan = pruned("mistral", half)
    save(tmp_path, copy.deepcopy(small).bfloat16(), plan)
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_uniform_plan_is_a_plain_folder(name: str, tmp_path: Path) -> None:
    small, plan = pruned(name, only_neurons if name == "bert" else half)
    export_pretrained(small, plan, tmp_path)
    again = auto(name, tmp_path)
    assert again.config.intermediate_size == 24
    # Half the heads, not heads of half the width, which would have the same shapes.
    assert getattr(again.config, "head_dim", 8) == 8
    torch.testing.assert_close(logits(again), logits(small), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("keeps", [half, uneven])
def test_any_plan_is_a_padded_folder(name: str, keeps: Any, tmp_path: Path) -> None:
    small, plan = pruned(name, keeps)
    export_padded(small, plan, tmp_path)
    again = auto(name, tmp_path)
    torch.testing.assert_close(logits(again), logits(small), rtol=1e-5, atol=1e-5)
    dense = found(name)[0]
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in dense.named_parameters()
    }
    zeros = sum(int((p == 0).sum()) for p in again.parameters())
    removed = sum(p.numel() for p in dense.parameters()) - sum(
        p.numel() for p in small.parameters()
    )
    assert zeros >= removed > 0


def test_an_uneven_plan_names_the_first_layer_that_differs(tmp_path: Path) -> None:
    """The config can follow one layer; the first that does not fit is named, with the cures."""

    def first_only(number: int, group: PrunableGroup) -> float:
        neurons = group.units == SIZES["intermediate_size"]
        return 0.5 if neurons and ".0." in group.name else 1.0

    small, plan = pruned("mistral", first_only)
    with pytest.raises(PlanError, match=r"layers\.\d\.mlp.*one width.*export_padded"):
        export_pretrained(small, plan, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_heads_that_a_config_cannot_say_are_refused() -> None:
    """BERT's head width follows from its number of heads, so fewer heads fit no config."""
    small, plan = pruned("bert", lambda n, g: 0.5 if g.units == 4 else 1.0)
    if all(len(plan.kept[g.name]) == g.units for g in plan.groups):
        pytest.skip("no attention heads found")
    with pytest.raises(PlanError, match="attention"):
        fitting_config(small, plan)


def test_a_model_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"carries no config.*prune_env\.save"):
        export_padded(toy_model("chain"), PruningPlan((), {}), tmp_path)


def test_a_folder_without_config_asks_for_a_factory(tmp_path: Path) -> None:
    save(tmp_path, toy_model("chain"), PruningPlan((), {}))
    with pytest.raises(RunError, match="Give a factory"):
        load(tmp_path)


def rewritten(folder: Path, **changes: Any) -> None:
    """The saved network with another description, sealed again: as a stranger may send it."""
    tensors, parts = load_described(folder / WEIGHTS)
    described = {**json.loads(parts["description"]), **changes}
    save_tensors(folder / WEIGHTS, tensors, {**parts, "description": json.dumps(described)})


def test_a_folder_cannot_name_code_to_run(tmp_path: Path) -> None:
    small, plan = pruned("bert", half)
    save(tmp_path, small, plan)
    for name in ("AutoTokenizer", "NoSuchModel", "logging"):
        rewritten(tmp_path, class_name=name)
        with pytest.raises(RunError, match=f"cannot make the {name}"):
            load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"hidden_size": -1}, {"hidden_size": "x"}, {"num_attention_heads": 0}]
)
def test_a_config_that_cannot_be_made_is_refused(change: Any, tmp_path: Path) -> None:
    small, plan = pruned("bert", half)
    save(tmp_path, small, plan)
    config = json.loads(load_described(tmp_path / WEIGHTS)[1]["description"])["config"]
    rewritten(tmp_path, config={**config, **change})
    with pytest.raises(RunError, match="cannot make the BertForSequenceClassification"):
        load(tmp_path)


def test_a_config_that_no_longer_describes_the_network_is_left_out(tmp_path: Path) -> None:
    """Then `load` asks for a factory, instead of making another network."""
    small, plan = pruned("bert", half)
    small.config.num_hidden_layers = 1  # type: ignore[union-attr]
    save(tmp_path, small, plan)
    with pytest.raises(RunError, match="Give a factory"):
        load(tmp_path)
    assert torch.equal(logits(load(tmp_path, FACTORIES["bert"])), logits(small))


def test_a_plan_of_another_cut_is_refused(tmp_path: Path) -> None:
    small, _ = pruned("mistral", half)
    _, other = pruned("mistral", uneven)
    with pytest.raises(PlanError, match="in the pruned network"):
        export_padded(small, other, tmp_path)


# ---- what is exported is read back and run before it is put in place


def test_a_folder_that_holds_a_model_is_left_alone(tmp_path: Path) -> None:
    small, plan = pruned("mistral", half)
    export_padded(small, plan, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for export in (export_padded, export_pretrained):
        with pytest.raises(RunError, match="holds a model already"):
            export(small, plan, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("export", [export_padded, export_pretrained])
def test_a_network_that_does_more_than_its_config_is_refused(export: Any, tmp_path: Path) -> None:
    """A hook of the user's own is in no file: the folder would compute something else."""
    small, plan = pruned("mistral", half)
    small.register_forward_hook(lambda module, args, out: {"logits": 2 * out.logits})
    (tmp_path / "note").write_text("kept")
    with pytest.raises(PlanError, match=r"computes something else|no smaller one fits"):
        export(small, plan, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_inputs_that_do_not_run_ask_for_an_example(tmp_path: Path) -> None:
    small, plan = pruned("mistral", half)
    with pytest.raises(ModelError, match="Give example_inputs"):
        export_padded(small, plan, tmp_path / "x", {"input_ids": torch.zeros(1, 2, 3)})
    assert list(tmp_path.iterdir()) == []


def without(*gone: str) -> tuple[nn.Module, PruningPlan]:
    """Three layers of which the named branches go."""
    torch.manual_seed(0)
    sizes = {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 2}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    groups = sublayer_groups(model, tokens())
    kept = {g.name: () if any(name in g.name for name in gone) else (0,) for g in groups}
    assert list(kept.values()).count(()) == len(gone)
    plan = PruningPlan(groups, kept)
    return compact(model, plan), plan


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layers_with_nothing_left_are_not_counted(layer: int, tmp_path: Path) -> None:
    small, plan = without(f"layers.{layer}.self_attn", f"layers.{layer}.mlp")
    export_pretrained(small, plan, tmp_path / "x")
    again = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "x")
    assert again.config.num_hidden_layers == len(again.config.layer_types) == 2
    torch.testing.assert_close(logits(again), logits(small), rtol=1e-5, atol=1e-5)
    size = sum(p.numel() for p in small.parameters())
    assert sum(p.numel() for p in again.parameters()) == size


def test_half_a_layer_fits_no_config_but_its_zeros_do(tmp_path: Path) -> None:
    small, plan = without("layers.1.self_attn")
    with pytest.raises(PlanError, match=r"self_attn.*no smaller one fits.*export_padded"):
        export_pretrained(small, plan, tmp_path / "x")
    export_padded(small, plan, tmp_path / "x")
    again = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "x")
    torch.testing.assert_close(logits(again), logits(small), rtol=1e-5, atol=1e-5)


MIXTURES = {
    "Mixtral": {"num_local_experts": 6},
    "GptOss": {"num_local_experts": 6, "head_dim": 8},  # its router has a bias
}


def mixture(name: str, keeps: Callable[[int], int]) -> tuple[nn.Module, PruningPlan]:
    """A mixture whose nth layer keeps as many experts as `keeps` says."""
    torch.manual_seed(0)
    sizes = {**SIZES, "num_key_value_heads": 2, "num_experts_per_tok": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(**sizes, **MIXTURES[name])
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = find_groups(model, tokens())
    groups = [g for g in found if g.name.endswith("experts") and not g.frozen]
    levels = [keeps(number) for number in range(len(groups))]
    plan = PruningPlan.of_levels(groups, levels, rank_units(model, groups))
    return compact(model, plan).eval(), plan


def test_a_router_with_a_bias_never_chooses_what_was_removed(tmp_path: Path) -> None:
    small, plan = mixture("GptOss", lambda number: 3 + number)
    export_padded(small, plan, tmp_path / "x")
    again = transformers.GptOssForCausalLM.from_pretrained(tmp_path / "x")
    torch.testing.assert_close(logits(again), logits(small), rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_a_router_without_a_bias_is_refused_and_the_cure_works(tmp_path: Path) -> None:
    """Rows of zeros would be chosen: logits off by half of the largest, without a word."""
    small, plan = mixture("Mixtral", lambda number: 4)
    with pytest.raises(PlanError, match=r"has no bias.*2 that were removed.*export_pretrained"):
        export_padded(small, plan, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    export_pretrained(small, plan, tmp_path / "x")
    again = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "x")
    assert again.config.num_local_experts == 4
    torch.testing.assert_close(logits(again), logits(small), rtol=1e-5, atol=1e-5)
    whole, plan = mixture("Mixtral", lambda number: 6)
    export_padded(whole, plan, tmp_path / "y")
