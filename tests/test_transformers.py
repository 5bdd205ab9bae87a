"""Transformers of every family, tiny and random: heads and neurons found, the laws obeyed.

No test needs weights from outside: the configurations have 2 layers, width 32 and 64 tokens.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import Toy, channels_last, close, counted_macs, counted_size, outputs, unaccounted
from tuned import OPTIMISERS, thinned, tuned_under_watch

from prune_env.costs.model import CostModel
from prune_env.plan.cut import Candidates, compact, masked
from prune_env.plan.plan import PruningPlan, rank_units
from prune_env.structure.discover import find_groups
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import map_tensors
from prune_env.structure.multihead import free_widths
from prune_env.structure.sublayers import sublayer_groups

transformers = pytest.importorskip("transformers")

TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
CAUSAL = TEXT | {"num_key_value_heads": 2, "use_cache": False}
MOE = CAUSAL | {"num_local_experts": 6, "num_experts_per_tok": 2}
IMAGE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
SPECIAL = dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id"), 0)

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mistral": ("MistralForCausalLM", "MistralConfig", CAUSAL | {"sliding_window": None}),
    "cached": ("MistralForCausalLM", "MistralConfig", CAUSAL | {"use_cache": True}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", CAUSAL),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", CAUSAL),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", CAUSAL | {"head_dim": 16}),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT | {"use_cache": False}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", MOE | {"experts_implementation": "eager"}),
    "mixtral_grouped": ("MixtralForCausalLM", "MixtralConfig", MOE),
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT),
    "distilbert": (
        "DistilBertForSequenceClassification", "DistilBertConfig",
        {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4,
         "max_position_embeddings": 64},
    ),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", TEXT),
    "modernbert": ("ModernBertForSequenceClassification", "ModernBertConfig", TEXT | SPECIAL),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
         "use_cache": False},
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE),
    "deit": ("DeiTForImageClassification", "DeiTConfig", IMAGE),
    "swin": (
        "SwinForImageClassification", "SwinConfig",
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2],
         "num_heads": [2, 4], "window_size": 4},
    ),
    "bigbird": (
        "BigBirdForSequenceClassification", "BigBirdConfig",
        TEXT | {"attention_type": "original_full"},
    ),
}  # fmt: skip

# Units of every live group, in order of execution.
FOUND: dict[str, list[int]] = {
    "mistral": [2, 48, 2, 48],
    "cached": [2, 48, 2, 48],
    "llama": [2, 48, 2, 48],
    "qwen2": [2, 48, 2, 48],
    "qwen3": [2, 48, 2, 48],
    "neox": [4, 48, 4, 48],
    "mixtral": [2, 6, 2, 6],
    "mixtral_grouped": [2, 6, 2, 6],
    "bert": [4, 48, 4, 48, 32],
    "distilbert": [4, 48, 4, 48, 32],
    "roberta": [4, 48, 4, 48, 32],
    "modernbert": [4, 48, 4, 48],
    "gpt2": [4, 128, 4, 128],
    "vit": [4, 48, 4, 48],
    "deit": [4, 48, 4, 48],
    "swin": [2, 64, 2, 64, 4, 128, 4, 128],
    "bigbird": [4, 48, 4, 48, 32],
    "encoder": [4, 48, 4, 48],
    "packed": [4],
    "flattened": [4],
}


class Packed(nn.Module):
    """Attention as in timm and torchvision: one projection, heads counted by an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.num_heads, self.wide = nn.LayerNorm(32), 4, 32
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj(mixed.reshape(batch, tokens, self.wide))


class Flattened(nn.Module):
    """Heads and batch in one dim for `bmm`, tokens first, as in fairseq and old encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head_dim = nn.LayerNorm(32), 8
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).transpose(0, 1)
        q, k, v = (self._heads(layer(y)) for layer in (self.q, self.k, self.v))
        mixed = torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1) @ v
        return x + self.o(mixed.transpose(0, 1).reshape(*y.shape[:2], -1)).transpose(0, 1)

    def _heads(self, y: Tensor) -> Tensor:
        return y.contiguous().view(len(y), -1, self.head_dim).transpose(0, 1)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "encoder": encoder, "packed": Packed, "flattened": Flattened,
}  # fmt: skip
NAMES = sorted([*FAMILIES, *PLAIN])


@cache
def case(name: str) -> Toy:
    """A family with its groups; do not change it."""
    torch.manual_seed(0)
    if name in PLAIN:
        model, inputs = PLAIN[name]().eval(), torch.randn(2, 10, 32)
        return Toy(model, inputs, find_groups(model, inputs))
    kind, config, options = FAMILIES[name]
    model = getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()
    with torch.no_grad():  # fresh models have small weights and zero biases: make heads differ
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    images = "image_size" in options
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16)} if images else {"input_ids": tokens()}
    return Toy(model, inputs, find_groups(model, inputs))


@cache
def branches(name: str) -> tuple[PrunableGroup, ...]:
    return sublayer_groups(case(name).model, case(name).inputs)


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 64, (2, 16), generator=generator)


def random_plan(name: str, seed: int) -> PruningPlan:
    """Every live group at a random level below the top, random units."""
    chosen, groups = np.random.default_rng(seed), case(name).live
    levels = [int(chosen.choice(group.levels[:-1])) for group in groups]
    orders = rank_units(case(name).model, groups, "random", seed=seed)
    return PruningPlan.of_levels(groups, levels, orders)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_heads_and_neurons_are_found_and_verified(name: str) -> None:
    live = case(name).live
    assert [group.units for group in live] == FOUND[name]
    assert all(group.verified for group in live)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_a_group(name: str) -> None:
    assert not unaccounted(case(name).model, case(name).groups)


QUICK = ("mistral", "bert", "vit")
LONG = ("mixtral", "swin", "gpt2", "modernbert", "packed")
"""One of each way to be built; the others are variations of these."""
MARKS = {**dict.fromkeys(QUICK, ()), **dict.fromkeys(LONG, pytest.mark.long)}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=MARKS.get(n, pytest.mark.slow)) for n in NAMES]
)
def test_order_in_memory_mode_and_batches_do_not_matter(name: str) -> None:
    model, inputs = case(name).model, case(name).inputs
    more = [map_tensors(lambda t: t.flip(0), inputs)]
    model, inputs = channels_last(model).train(), channels_last(inputs)
    assert find_groups(model, inputs, more_inputs=more) == case(name).groups


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_masked_equals_compact(name: str, seed: int) -> None:
    model, inputs = case(name).model, case(name).inputs
    plan = random_plan(name, seed)
    small = compact(model, plan)
    with masked(model, plan):
        zeroed = outputs(model, inputs)
    assert close(zeroed, outputs(small, inputs), 1e-5)
    assert not close(zeroed, outputs(model, inputs), 1e-3)
    built = Candidates(model, case(name).live).build(plan.indices())
    assert close(outputs(built, inputs), outputs(small, inputs), 1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(2))
def test_cost_is_what_pytorch_counts_on_the_small_network(name: str, seed: int) -> None:
    model, inputs = case(name).model, case(name).inputs
    costs = CostModel.of(model, inputs, case(name).live)
    plan = random_plan(name, seed)
    small = compact(model, plan)
    macs, params, size = costs([plan.levels[group] for group in costs.names])
    if name == "mixtral_grouped":  # PyTorch counts its grouped product as nothing
        small.set_experts_implementation("eager")
    assert macs == pytest.approx(counted_macs(small, inputs), rel=1e-12)
    assert (params, size) == counted_size(small)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_network_survives_copies_and_state_dicts(name: str) -> None:
    model, inputs = case(name).model, case(name).inputs
    plan = random_plan(name, 0)
    small = compact(model, plan)
    fresh = compact(copy.deepcopy(model), plan)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(small.state_dict())
    assert close(outputs(copy.deepcopy(small), inputs), outputs(fresh, inputs), 1e-6)
    assert small.state_dict().keys() == model.state_dict().keys()


def test_residual_streams_and_tied_heads_stay_with_the_reason() -> None:
    reasons = {group.name: group.frozen for group in case("gpt2").groups if group.frozen}
    assert reasons == {
        "transformer.wte:0": "normalised across units (LayerNorm)",
        "transformer.wte:1": "tied to the output",
    }


def test_a_unit_of_grouped_queries_is_a_head_of_keys_with_its_queries() -> None:
    group = next(g for g in case("mistral").live if g.name.endswith("q_proj"))
    widths = {axis.tensor.rpartition("self_attn.")[2]: axis.width for axis in group.axes}
    assert widths == {
        "q_proj.weight": 16, "k_proj.weight": 8, "v_proj.weight": 8, "o_proj.weight": 16,
    }  # fmt: skip


def test_attributes_that_count_heads_follow() -> None:
    small = compact(case("gpt2").model, random_plan("gpt2", 0))
    attention = small.get_submodule("transformer.h.0.attn")
    kept = len(random_plan("gpt2", 0).kept["transformer.h.0.attn.c_attn"])
    assert (attention.split_size, attention.c_attn.nf) == (8 * kept, 24 * kept)
    assert (attention.embed_dim, attention.c_proj.nf) == (
        32,
        32,
    )  # the residual width, equal before


@pytest.mark.long
@pytest.mark.parametrize("name", ["mistral", "gpt2", "mixtral"])
def test_generation_with_a_cache_equals_generation_without(name: str) -> None:
    small = compact(case(name).model, random_plan(name, 2))
    prompt = tokens()[:, :8]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = small.generate(prompt, use_cache=True, **options)
    assert cached.shape == (2, 16)
    assert torch.equal(cached, small.generate(prompt, use_cache=False, **options))


def test_a_router_never_chooses_among_fewer_experts_than_it_needs() -> None:
    group = next(g for g in case("mixtral").live if g.name.endswith("experts"))
    assert group.levels == (2, 3, 4, 5, 6)
    plan = PruningPlan((group,), {group.name: (1, 2, 4)})
    block = compact(case("mixtral").model, plan).get_submodule("model.layers.0.mlp")
    assert block.gate.num_experts == block.experts.num_experts == 3
    assert block.experts.down_proj.shape == (3, 32, 48)


def test_zeroing_an_expert_is_not_the_same_as_removing_it() -> None:
    """Why `masked` keeps routers from choosing: their zeroed rows have logit 0, not -inf."""
    model, inputs = case("mixtral").model, case("mixtral").inputs
    group = next(g for g in case("mixtral").live if g.name.endswith("experts"))
    plan = PruningPlan((group,), {group.name: (1, 2, 4)})
    small, zeroed = outputs(compact(model, plan), inputs), copy.deepcopy(model)
    with torch.no_grad():
        for tensor in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
            zeroed.get_parameter(f"model.layers.0.mlp.{tensor}")[[0, 3, 5]] = 0
    assert not close(outputs(zeroed, inputs), small, 1e-3)
    with masked(model, plan):
        assert close(outputs(model, inputs), small, 1e-5)


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(6)},
    "heads": {"attn_mask": torch.rand(8, 6, 6, generator=torch.Generator().manual_seed(3)) > 0.8},
    "padding": {"key_padding_mask": torch.tensor([[False] * 6, [False] * 4 + [True] * 2])},
    "per_head_weights": {"average_attn_weights": False},
    "no_weights": {
        "need_weights": False, "attn_mask": torch.eye(6).roll(1, 0).bool(),
        "key_padding_mask": torch.tensor([[False] * 6, [False] * 4 + [True] * 2]),
    },
}  # fmt: skip


@pytest.mark.parametrize("mask", sorted(MASKS))
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("crossed", [True, False])
def test_free_attention_computes_what_pytorch_computes(
    mask: str, batch_first: bool, crossed: bool
) -> None:
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    free = free_widths(copy.deepcopy(dense))
    query = torch.randn(2, 6, 16) if batch_first else torch.randn(6, 2, 16)
    key = torch.randn_like(query) if crossed else query
    ours = outputs(free, {"query": query, "key": key, "value": key, **MASKS[mask]})
    theirs = outputs(dense, {"query": query, "key": key, "value": key, **MASKS[mask]})
    assert len(ours) == len(theirs)
    assert close(ours, theirs, 1e-5)
    assert type(dense) is nn.MultiheadAttention


def test_free_attention_takes_single_samples_and_widths_of_their_own() -> None:
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(16, 4, kdim=6, vdim=5).eval()
    query, key, value = torch.randn(3, 16), torch.randn(7, 6), torch.randn(7, 5)
    free = free_widths(copy.deepcopy(dense))
    assert close(outputs(free, (query, key, value)), outputs(dense, (query, key, value)), 1e-5)


def test_an_encoder_with_fewer_heads_honours_padding() -> None:
    model = case("encoder").model
    plan = random_plan("encoder", 1)
    padding = torch.zeros(2, 10, dtype=torch.bool)
    padding[1, 6:] = True
    inputs = {"src": torch.randn(2, 10, 32), "src_key_padding_mask": padding}
    small = compact(model, plan)
    shorter = outputs(small, {"src": inputs["src"][1:, :6]})
    assert close([outputs(small, inputs)[0][1:, :6]], shorter, 1e-5)
    heads = len(plan.kept["layers.0.self_attn.in_proj"])
    assert small.get_submodule("layers.0.self_attn").num_heads == heads


class Averages(nn.Module):
    """Attention whose averaged weights are thrown away, or not."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.norm, self.used = nn.LayerNorm(16), used
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(x)
        mixed, weights = self.attend(y, y, y)
        return (x + mixed, weights) if self.used else (x + mixed,)


@pytest.mark.parametrize("used", [False, True])
def test_an_average_over_heads_freezes_them_only_where_it_is_used(used: bool) -> None:
    groups = find_groups(Averages(used), torch.randn(2, 5, 16))
    attention = next(group for group in groups if group.name == "attend.in_proj")
    assert bool(attention.frozen) == used
    assert used or attention.units == 4


@pytest.mark.long
def test_block_sparse_attention_is_frozen_with_a_reason_its_neurons_are_not() -> None:
    options = TEXT | {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}
    config = transformers.BigBirdConfig(**options)
    inputs = {"input_ids": torch.ones(1, 64, dtype=torch.int64)}
    groups = find_groups(transformers.BigBirdForSequenceClassification(config), inputs)
    assert [g.units for g in groups if not g.frozen] == [48, 48, 32]
    assert all(g.frozen for g in groups if "attention" in g.name)


# ---- sub-layers

DEPTH = sorted(set(NAMES) - {"packed", "flattened", "neox"})
HALF = {"encoder": 2, "swin": 4}  # inline code in one, windows cut out of the stream in the other


def deep_plan(name: str, seed: int) -> PruningPlan:
    """Branches kept or not, and random units of everything else, in one plan."""
    chosen, units = np.random.default_rng(seed), random_plan(name, seed)
    kept: dict[str, tuple[int, ...]] = {
        group.name: (0,) if chosen.random() < 0.5 else () for group in branches(name)
    }
    kept[branches(name)[seed].name] = ()
    return PruningPlan((*units.groups, *branches(name)), {**units.kept, **kept})


@pytest.mark.parametrize("name", DEPTH)
def test_every_residual_branch_is_a_unit(name: str) -> None:
    assert len(branches(name)) == HALF.get(name, 4)
    assert all(group.verified and group.levels == (0, 1) for group in branches(name))


@pytest.mark.parametrize("name", DEPTH)
@pytest.mark.parametrize("seed", range(2))
def test_branches_obey_the_laws_beside_the_units_inside_them(name: str, seed: int) -> None:
    model, inputs, plan = case(name).model, case(name).inputs, deep_plan(name, seed)
    small = compact(model, plan)
    with masked(model, plan):
        zeroed = outputs(model, inputs)
    assert close(zeroed, outputs(small, inputs), 1e-5)
    costs = CostModel.of(model, inputs, plan.groups)
    macs, params, size = costs([plan.levels[group] for group in costs.names])
    if name == "mixtral_grouped":
        small.set_experts_implementation("eager")
    assert macs == pytest.approx(counted_macs(small, inputs), rel=1e-12)
    assert (params, size) == counted_size(small)


def test_a_candidate_gets_its_branches_back() -> None:
    model, inputs, plan = case("mistral").model, case("mistral").inputs, deep_plan("mistral", 0)
    shell = Candidates(model, plan.groups)
    cut = outputs(shell.build(plan.indices()), inputs)
    assert close(cut, outputs(compact(model, plan), inputs), 1e-6)
    assert close(outputs(shell.build({}), inputs), outputs(model, inputs), 1e-6)
    assert close(outputs(shell.build(plan.indices()), inputs), cut, 1e-6)


def test_a_network_without_branches_can_be_stored() -> None:
    model, inputs, plan = case("gpt2").model, case("gpt2").inputs, deep_plan("gpt2", 1)
    small = compact(model, PruningPlan.from_json(plan.to_json()))
    again = pickle.loads(pickle.dumps(small))
    assert close(outputs(again, inputs), outputs(small, inputs), 1e-6)
    assert small.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("removed", ["0.self_attn", "1.self_attn", "0.mlp"])
@pytest.mark.parametrize("name", ["mistral", "qwen2", "mixtral"])
def test_the_cache_is_right_without_a_branch(name: str, removed: str) -> None:
    """Positions are counted by the first layer's cache, whether or not it has attention left."""
    groups = branches(name)
    kept = {group.name: () if removed in group.name else (0,) for group in groups}
    small = compact(case(name).model, PruningPlan(groups, kept))
    prompt = tokens()[:, :8]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    scored = options | {"output_logits": True, "return_dict_in_generate": True}
    cached = small.generate(prompt, use_cache=True, **scored)
    whole = small.generate(prompt, use_cache=False, **scored)
    assert torch.equal(cached.sequences, whole.sequences)
    assert close(list(cached.logits), list(whole.logits), 1e-4)
    assert not torch.equal(whole.logits[0], case(name).model(prompt).logits[:, -1])


@pytest.mark.parametrize("name", NAMES)
def test_what_a_plan_removed_stays_removed(name: str) -> None:
    """Law 6 of DESIGN.md; tests/test_laws.py has it over the toys."""
    small = thinned(case(name).model, "2:4")
    assert sum(int((p == 0).sum()) for p in small.parameters() if p.ndim > 1) > 1000
    tuned_under_watch(small, case(name).inputs, OPTIMISERS["adamw"])
