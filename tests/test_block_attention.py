"""Block-sparse attention: nested layouts, backends that agree, models that stay what they were."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import itertools
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import counted_macs

from prune_env.attention.attach import sparsify_attention, with_full_attention
from prune_env.attention.backends import Visible, auto, flex, flex_with, gather, masked
from prune_env.attention.checks import require_length, require_sparse
from prune_env.attention.density import block_macs, density_groups, follow_heads
from prune_env.attention.layout import BlockLayout, layout_of
from prune_env.costs.model import CostModel
from prune_env.errors import ConfigError, GroupError, ModelError, PruneEnvError
from prune_env.plan.cut import compact
from prune_env.plan.cut import masked as masked_model
from prune_env.plan.plan import PruningPlan
from prune_env.structure.discover import find_groups
from prune_env.structure.options import constrain
from prune_env.structure.skip import is_cache

FULL = {"random": 99}
"""More random blocks than there are: everything is kept."""
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
"""Weights so large that what a token reads shows in the logits."""
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mistral": ("MistralForCausalLM", "MistralConfig", {"num_key_value_heads": 2}),
    "sliding": (
        "MistralForCausalLM", "MistralConfig", {"num_key_value_heads": 2, "sliding_window": 11},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "bert": ("BertForSequenceClassification", "BertConfig", {}),
    "roberta": (
        "RobertaForSequenceClassification", "RobertaConfig", {"max_position_embeddings": 66},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {}),
}  # fmt: skip


def tiny(name: str, **extra: Any) -> Any:
    """A small random model of the transformers library."""
    model, config, options = MODELS[name]
    package = importlib.import_module("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(package, config)(**{**SIZES, **options, **extra})
        return getattr(package, model)(made).eval()


def tokens(length: int = 32, batch: int = 2) -> Tensor:
    return torch.randint(5, 64, (batch, length), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        found = model(*args, **kwargs).logits
    assert isinstance(found, Tensor)
    return found


def heads(generator: torch.Generator, length: int, groups: int = 2) -> tuple[Tensor, ...]:
    """Random query, key and value of 2 samples, 4 heads, `groups` key heads, width 8."""
    shapes = [(2, 4, length, 8), (2, groups, length, 8), (2, groups, length, 8)]
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


layouts = st.builds(
    BlockLayout,
    block=st.sampled_from([1, 4, 8]),
    window=st.integers(1, 7),
    global_blocks=st.sampled_from([(), (0,), (0, 1), (1,)]),
    random=st.integers(0, 4),
    seed=st.integers(0, 99),
    causal=st.booleans(),
    horizontal=st.booleans(),
    per_head=st.booleans(),
)


# ---- layouts


@given(layouts, st.integers(2, 9))
def test_masks_nest_in_every_count_and_keep_the_diagonal(layout: BlockLayout, blocks: int) -> None:
    mask = layout.mask(3, blocks)
    assert mask.diagonal(dim1=1, dim2=2).all()
    for change in (
        {"window": layout.window + 2},
        {"random": layout.random + 1},
        {"global_blocks": (*layout.global_blocks, blocks - 1)},
    ):
        wider = dataclasses.replace(layout, **change).mask(3, blocks)
        assert bool((wider >= mask).all()), change
    if layout.causal:
        assert not mask.triu(1).any()
    if not layout.per_head:
        assert torch.equal(mask, mask[:1].expand_as(mask))


@given(layouts, st.integers(2, 9))
def test_the_order_is_a_permutation_that_begins_with_the_layout(
    layout: BlockLayout, blocks: int
) -> None:
    grid = (3, blocks, blocks) if layout.per_head else (blocks, blocks)
    order, mask = layout.order(torch.zeros(grid)), layout.mask(3, blocks)
    units = mask if layout.per_head else mask[0]
    assert sorted(order.tolist()) == list(range(units.numel()))
    kept = int(units.sum())
    assert set(order[:kept].tolist()) == set(units.reshape(-1).nonzero().squeeze(1).tolist())
    least = blocks * (3 if layout.per_head else 1)
    diagonal = torch.eye(blocks, dtype=torch.bool).expand(grid).reshape(-1)
    assert diagonal[order[:least]].all()


def test_counts_by_hand() -> None:
    """The picture of Zaheer et al. 2020, figure 1: window, global rows and columns, causal."""
    drawn = {
        BlockLayout(window=3, global_blocks=()): "11000 11100 01110 00111 00011",
        BlockLayout(window=3): "11111 11100 11110 10111 10011",
        BlockLayout(window=3, horizontal=False): "11000 11100 11110 10111 10011",
        BlockLayout(window=3, causal=True): "10000 11000 11100 10110 10011",
        BlockLayout(window=1, global_blocks=(2,), causal=True): "10000 01000 11100 00110 00101",
    }
    for layout, picture in drawn.items():
        rows = ["".join(str(int(x)) for x in row) for row in layout.mask(1, 5)[0]]
        assert " ".join(rows) == picture


def test_random_blocks_come_per_row_and_follow_the_seed() -> None:
    layout = BlockLayout(window=1, global_blocks=(), random=2, seed=3)
    mask = layout.mask(2, 12)
    assert mask.sum(-1).eq(3).all()
    assert torch.equal(mask, layout.mask(2, 12))
    assert not torch.equal(mask, dataclasses.replace(layout, seed=4).mask(2, 12))
    own = dataclasses.replace(layout, per_head=True).mask(2, 12)
    assert own.sum(-1).eq(3).all()
    assert not torch.equal(own[0], own[1])
    causal = dataclasses.replace(layout, causal=True).mask(1, 12)[0]
    assert causal.sum(-1).tolist() == [1, 2, *[3] * 10]


def test_fields_of_deepspeed() -> None:
    section = {
        "mode": "bigbird", "block": 32, "num_heads": 4, "num_random_blocks": 2,
        "num_sliding_window_blocks": 5, "num_global_blocks": 2, "attention": "unidirectional",
        "different_layout_per_head": True, "horizontal_global_attention": False,
    }  # fmt: skip
    assert layout_of(**section) == BlockLayout(32, 5, (0, 1), 2, 0, True, False, True)
    indices = layout_of(global_block_indices=[1, 4], global_block_end_indices=[2, 6])
    assert indices.global_blocks == (1, 4, 5)
    assert layout_of(global_block_indices=[3]).global_blocks == (3,)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"blok": 16}, "no option 'blok'"),
        ({"window": 3, "num_sliding_window_blocks": 3}, "second time"),
        ({"mode": "fixed"}, "mode 'fixed'"),
        ({"attention": "both"}, "'both'"),
        ({"block": 0}, "block of the block layout is 0"),
        ({"random": -1}, "random of the block layout is -1"),
        ({"window": 1.5}, "window of the block layout is 1.5"),
        ({"global_blocks": (-1,)}, "negative"),
        ({"global_block_indices": [1], "global_block_end_indices": [1]}, "larger end"),
        ({"global_block_indices": [1], "global_block_end_indices": []}, "one end for every"),
    ],
)
def test_bad_fields(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        layout_of(**fields)


def test_a_global_block_outside_the_grid() -> None:
    with pytest.raises(ConfigError, match="do not fit 4 blocks"):
        BlockLayout(global_blocks=(4,)).mask(1, 4)


# ---- backends


@given(layouts, st.integers(1, 6), st.integers(0, 3), st.sampled_from([1, 2, 4]))
def test_gather_equals_masked(layout: BlockLayout, blocks: int, kind: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(layout.seed)
    length = blocks * layout.block
    query, key, value = heads(generator, length, groups)
    mask = (
        None,
        torch.arange(length)[None, :] >= torch.tensor([[0], [length // 2]])[:, None, None],
        torch.rand((2, 4, length, length), generator=generator) > 0.3,
        torch.rand((length, length), generator=generator) > 0.3,
    )[kind]
    blocks_HNN = layout.mask(4, max(blocks, 3))
    visible = Visible(blocks_HNN, layout.block, layout.causal, mask)
    expected = masked(query, key, value, visible, 0.4)
    assert expected.isfinite().all()
    for backend in (gather, auto):
        torch.testing.assert_close(
            backend(query, key, value, visible, 0.4), expected, atol=1e-5, rtol=0
        )


@pytest.mark.long
@settings(max_examples=10)
@given(layouts, st.integers(3, 5), st.booleans())
def test_flex_equals_masked(layout: BlockLayout, blocks: int, padded: bool) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    length = blocks * layout.block
    query, key, value = heads(torch.Generator().manual_seed(0), length)
    starts = torch.tensor([0, length // 2])[:, None, None, None]
    mask = torch.arange(length) >= starts if padded else None
    visible = Visible(layout.mask(4, blocks), layout.block, layout.causal, mask)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        found = flex_with(flex_attention, query, key, value, visible, 0.4)
    expected = masked(query, key, value, visible, 0.4)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", [masked, gather, auto])
@pytest.mark.parametrize("causal", [False, True])
def test_all_blocks_are_full_attention(backend: Any, causal: bool) -> None:
    query, key, value = heads(torch.Generator().manual_seed(0), 40)
    visible = Visible(torch.ones(1, 5, 5, dtype=torch.bool), 8, causal)
    expected = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=causal, enable_gqa=True
    )
    found = backend(query, key, value, visible, None, 0.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_gradients_agree() -> None:
    visible = Visible(BlockLayout(8, random=1, per_head=True).mask(4, 6), 8)
    grads = []
    for backend in (masked, gather):
        inputs = [t.requires_grad_() for t in heads(torch.Generator().manual_seed(0), 48)]
        backend(*inputs, visible).square().sum().backward()  # type: ignore[arg-type]
        grads.append([t.grad for t in inputs])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", [masked, gather, auto])
def test_what_backends_refuse(backend: Any) -> None:
    query, key, value = heads(torch.Generator().manual_seed(0), 40)
    eye = torch.eye(5, dtype=torch.bool)[None]
    with pytest.raises(ModelError, match="40 tokens, the block mask covers 32"):
        backend(query, key, value, Visible(eye[:, :4, :4], 8), None, 0.0)
    with pytest.raises(ModelError, match=r"blocks of 16 do not divide\. Pad it to 48"):
        backend(query, key, value, Visible(eye, 16), None, 0.0)
    with pytest.raises(ModelError, match="block mask of 3 heads"):
        backend(query, key, value, Visible(eye.expand(3, -1, -1), 8), None, 0.0)
    holed = eye.clone()
    holed[0, 3] = False
    with pytest.raises(ModelError, match="query block 3 of head 0 has no key block"):
        backend(query, key, value, Visible(holed, 8), None, 0.0)
    future = holed.clone()
    future[0, 3, 4] = True  # readable, but not causally
    backend(query, key, value, Visible(future, 8), None, 0.0)
    with pytest.raises(ModelError, match="query block 3 of head 0"):
        backend(query, key, value, Visible(future, 8, causal=True), None, 0.0)


def test_flex_is_for_cuda() -> None:
    query, key, value = heads(torch.Generator().manual_seed(0), 8)
    with pytest.raises(ModelError, match="flex attention runs on CUDA"):
        flex(query, key, value, Visible(torch.ones(1, 1, 1, dtype=torch.bool), 8))


# ---- models


@pytest.mark.parametrize("backend", ["masked", "gather", "auto"])
@pytest.mark.parametrize("name", list(MODELS))
def test_a_full_layout_is_the_model_itself(name: str, backend: str) -> None:
    model, x = tiny(name), tokens()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sparse = sparsify_attention(model, block=4, backend=backend, **FULL)
    padded = torch.ones_like(x)
    padded[1, 20:] = 0
    real = (padded.bool() if logits(model, x).ndim == 3 else padded[:, 0].bool())[..., None]
    for mask in (None, padded):
        found, expected = (
            logits(sparse, x, attention_mask=mask),
            logits(model, x, attention_mask=mask),
        )
        torch.testing.assert_close(found * real, expected * real, atol=1e-5, rtol=0)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", list(MODELS))
def test_backends_agree_in_models_and_differ_from_dense(name: str) -> None:
    model, x = tiny(name), tokens(48)
    padded = torch.ones_like(x)
    padded[0, :13] = 0
    fields: dict[str, Any] = {"block": 4, "random": 1, "per_head": True}
    found = [
        logits(sparsify_attention(model, backend=b, **fields), x, attention_mask=padded)
        for b in ("masked", "gather")
    ]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    if name != "sliding":  # whose window is as narrow as ours
        assert (found[0] - logits(model, x, attention_mask=padded)).abs().max() > 1e-3


@pytest.mark.parametrize("backend", ["masked", "gather"])
@pytest.mark.parametrize("name", ["mistral", "bert", "gpt2"])
def test_a_layout_is_the_dense_model_under_its_mask(name: str, backend: str) -> None:
    model, x, causal = tiny(name), tokens(24), name != "bert"
    layout = BlockLayout(block=4, window=3, global_blocks=(1,), causal=causal)
    allowed = layout.mask(1, 6).repeat_interleave(4, 1).repeat_interleave(4, 2)
    allowed = (allowed.tril() if causal else allowed).expand(2, 1, -1, -1)
    sparse = sparsify_attention(model, block=4, global_blocks=(1,), backend=backend)
    torch.testing.assert_close(
        logits(sparse, x), logits(model, x, attention_mask=allowed), atol=1e-5, rtol=0
    )


def test_vision_models_give_their_length() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {name: size for name, size in SIZES.items() if name != "max_position_embeddings"}
    config = ViTConfig(**sizes, image_size=(12, 20), patch_size=4)
    model = ViTForImageClassification(config).eval()
    x = torch.randn(2, 3, 12, 20)
    with pytest.raises(ConfigError, match="no number of positions"):
        sparsify_attention(model, block=4)
    full = sparsify_attention(model, block=4, length=16, **FULL)
    torch.testing.assert_close(logits(full, x), logits(model, x), atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="16 tokens, which blocks of 5"):
        logits(sparsify_attention(model, block=5, length=20), x)


def test_blocks_are_in_the_state_dict_and_go_with_a_copy() -> None:
    model, x = tiny("mistral"), tokens()
    first = sparsify_attention(model, block=4, random=1, seed=1, per_head=True)
    second = sparsify_attention(model, block=4, random=1, seed=2, per_head=True)
    names = [name for name in first.state_dict() if name.endswith("block_mask")]
    assert [tuple(first.state_dict()[name].shape) for name in names] == [(4, 16, 16)] * 2
    masks = [first.state_dict()[name] for name in names]
    assert not torch.equal(*masks)  # layers draw differently
    assert not torch.equal(logits(first, x), logits(second, x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(logits(first, x), logits(second, x))
    assert torch.equal(logits(first, x), logits(copy.deepcopy(first), x))
    again = sparsify_attention(first, block=4, **FULL)
    torch.testing.assert_close(logits(again, x), logits(model, x), atol=1e-5, rtol=0)


def remembered(model: nn.Module, output: Any) -> dict[str, Any]:
    """What the next call is given to go on; transformers 5.24 renamed the argument."""
    known = inspect.signature(model.forward).parameters
    word = "cache" if "cache" in known else "past_key_values"
    return {word: next(filter(is_cache, output.values())), "use_cache": True}


def test_decoding_with_a_cache_equals_reading_at_once() -> None:
    sparse, x = sparsify_attention(tiny("mistral"), block=4, window=3, random=1), tokens(20)
    whole = logits(sparse, x, use_cache=False)
    with torch.no_grad():
        step = sparse(x[:, :12], use_cache=True)
        parts = [step.logits]
        for place in range(12, 20):
            step = sparse(x[:, place : place + 1], **remembered(sparse, step))
            parts.append(step.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


def test_a_cache_that_forgets_is_refused() -> None:
    sparse, x = sparsify_attention(tiny("sliding"), block=4), tokens(20)
    with torch.no_grad():
        past = remembered(sparse, sparse(x[:, :16], use_cache=True))
        with pytest.raises(ModelError, match="a cache of every key"):
            sparse(x[:, 16:17], **past)


@pytest.mark.parametrize("name", ["mistral", "bert", "roberta"])
def test_lengths_are_refused_before_anything_is_computed(name: str) -> None:
    sparse = sparsify_attention(tiny(name), block=4)
    ran: list[nn.Module] = []
    for module in sparse.modules():
        if isinstance(module, nn.Embedding | nn.Linear):
            module.register_forward_pre_hook(lambda m, _: ran.append(m))
    with pytest.raises(ModelError, match="68 tokens, the block mask covers 64"):
        sparse(tokens(68))
    with pytest.raises(ModelError, match="30 tokens, which blocks of 4 do not divide"):
        sparse(input_ids=tokens(30))
    sparse.get_submodule(
        next(iter(density_groups(sparse))).name.removesuffix(".blocks")
    ).block_mask[1, 2] = False
    with pytest.raises(ModelError, match="query block 2 of head 1"):
        sparse(tokens(32))
    assert not ran
    require_length(sparse, 8)  # the hole is in its third row


@pytest.mark.parametrize(
    ("name", "fields", "error", "words"),
    [
        ("bert", {"attention": "unidirectional"}, ConfigError, "is bidirectional. Leave"),
        ("mistral", {"attention": "bidirectional"}, ConfigError, "is causal .unidirectional."),
        ("mistral", {"length": 65}, ConfigError, "model has 64 positions"),
        ("mistral", {"block": 128}, ConfigError, "0 blocks squared"),
        ("mistral", {"backend": "fast"}, ConfigError, "no attention backend 'fast'"),
        ("mistral", {"num_global": 1}, ConfigError, "no option 'num_global'"),
        ("mistral", {"global_": 17, "block": 4}, ConfigError, "do not fit 16 blocks"),
    ],
)
def test_bad_options(
    name: str, fields: dict[str, Any], error: type[PruneEnvError], words: str
) -> None:
    with pytest.raises(error, match=words):
        sparsify_attention(tiny(name), **fields)


def test_models_that_cannot_be_sparsified() -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    with pytest.raises(ModelError, match="Sequential has no attention module"):
        sparsify_attention(nn.Sequential(nn.Linear(2, 2)))
    bart = BartForConditionalGeneration(
        BartConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=64,
            max_position_embeddings=32,
        )
    )  # fmt: skip
    with pytest.raises(ModelError, match="second sequence"):
        sparsify_attention(bart)
    with pytest.raises(ModelError, match="takes a boolean mask"):
        logits(sparsify_attention(tiny("bert"), block=4), tokens(8), torch.zeros(2, 1, 8, 8))


def test_big_bird_that_would_fall_back_is_refused() -> None:
    from transformers import BigBirdConfig, BigBirdForSequenceClassification

    sizes = SIZES | {"max_position_embeddings": 128, "block_size": 4, "num_random_blocks": 1}
    model = BigBirdForSequenceClassification(BigBirdConfig(**sizes)).eval()
    with pytest.raises(ModelError, match="falls back to full attention for 28 tokens"):
        require_sparse(model, 28)
    require_sparse(model, 29)
    logits(model, tokens(32))
    require_sparse(model, 32)  # and the model agrees: it did not fall back
    logits(model, tokens(28))
    with pytest.raises(ModelError, match="types found: original_full"):
        require_sparse(model, 32)
    with pytest.raises(ModelError, match="types found: none"):
        require_sparse(tiny("bert"), 32)
    require_sparse(sparsify_attention(tiny("bert"), block=4), 32)


# ---- density as groups


@pytest.mark.parametrize(
    ("name", "per_head"), [("mistral", False), ("bert", False), ("bert", True)]
)
def test_density_is_pruned_like_any_unit(name: str, per_head: bool) -> None:
    fields: dict[str, Any] = {"block": 8, "per_head": per_head, **FULL}
    sparse, x = sparsify_attention(tiny(name), **fields), tokens(64)
    groups = density_groups(sparse)
    assert len(groups) == 2
    assert len(density_groups(sparsify_attention(tiny(name), block=8))) == 2
    for group in groups:
        assert group.grid == ((4, 8, 8) if per_head else (8, 8))
        assert group.levels[0] == (32 if per_head else 8)
        assert group.levels[-1] == (4 if per_head else 1) * (36 if name == "mistral" else 64)
    orders = {g.name: g.pattern.order(torch.zeros(g.grid)) for g in groups}
    seen = []
    for share in (1.0, 0.7, 0.3, 0.0):
        levels = [g.levels[round(share * (len(g.levels) - 1))] for g in groups]
        plan = PruningPlan.from_json(PruningPlan.of_levels(groups, levels, orders).to_json())
        small = compact(sparse, plan)
        with masked_model(sparse, plan):
            same = logits(sparse, x)
        torch.testing.assert_close(logits(small, x), same, atol=1e-5, rtol=0)
        seen.append([m.block_mask for m in small.modules() if hasattr(m, "block_mask")])
        assert seen[-1][0].dtype == torch.bool
        assert [g.units for g in density_groups(small)] == levels
    for wide, narrow in itertools.pairwise(seen):
        assert all((a >= b).all() and (a != b).any() for a, b in zip(wide, narrow, strict=True))
    eye = torch.eye(8, dtype=torch.bool).expand(4, -1, -1)
    assert all(torch.equal(mask, eye) for mask in seen[-1])
    torch.testing.assert_close(logits(sparse, x), logits(tiny(name), x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "units"), [("mistral", 2), ("bert", 4)])
def test_heads_take_their_blocks_along(name: str, units: int) -> None:
    dense, x = tiny(name), tokens(32)
    options = {"use_cache": False} if name == "mistral" else {}
    sparse = sparsify_attention(dense, block=4, random=2, per_head=True)
    found = follow_heads(sparse, find_groups(dense, {"input_ids": x, **options}))
    groups = [g for g in found if any(a.tensor.endswith("block_mask") for a in g.axes)]
    assert [(g.units, g.frozen) for g in groups] == [(units, "")] * 2
    blocks = density_groups(sparse)
    orders = {g.name: g.pattern.order(torch.zeros(g.grid)) for g in blocks}
    orders |= {g.name: torch.arange(g.units).flip(0) for g in groups}
    levels = [units - 1, units - 1, *(g.levels[len(g.levels) // 2] for g in blocks)]
    plan = PruningPlan.of_levels([*groups, *blocks], levels, orders)
    small = compact(sparse, plan)
    with masked_model(sparse, plan):
        expected = logits(sparse, x, **options)
    torch.testing.assert_close(logits(small, x, **options), expected, atol=1e-5, rtol=1e-5)
    masks = [m.block_mask for m in small.modules() if hasattr(m, "block_mask")]
    assert [len(mask) for mask in masks] == [4 * (units - 1) // units] * 2


def test_macs_of_a_block_are_counted_ones() -> None:
    """All elements of a full mask cost what the counter of PyTorch sees in full attention."""
    from torch.utils.flop_counter import FlopCounterMode

    dense, x = tiny("bert"), tokens(64, batch=1)
    sparse = sparsify_attention(dense, block=4, **FULL)
    dense.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        logits(dense, x)
    counts = {op.__name__: n for op, n in counter.get_flop_counts()["Global"].items()}
    macs = sum(
        price * sparse.get_buffer(name).numel() for name, price in block_macs(sparse).items()
    )
    assert 2 * macs == counts["bmm"]


@pytest.mark.parametrize("random", [0, 99])
@pytest.mark.parametrize(
    ("name", "per_head"), [("mistral", False), ("gpt2", True), ("bert", False), ("bert", True)]
)
def test_costs_are_what_gather_multiplies(name: str, per_head: bool, random: int) -> None:
    """Blocks that causality forbids, or that are gone already, are part of no cost."""
    options = {"use_cache": False} if name in ("mistral", "gpt2") else {}
    fields = {"block": 8, "per_head": per_head, "random": random, "seed": 3}
    sparse = sparsify_attention(tiny(name, **options), backend="gather", **fields)
    groups, inputs = density_groups(sparse), {"input_ids": tokens(64)}
    costs = CostModel.of(sparse, inputs, groups)
    assert costs.dense[0] == pytest.approx(counted_macs(sparse, inputs), rel=1e-9)
    masked_copy = sparsify_attention(tiny(name, **options), backend="masked", **fields)
    for found in (groups, ()):  # told of the groups or not, what is there costs the same
        assert CostModel.of(masked_copy, inputs, found).dense[0] == pytest.approx(costs.dense[0])
    orders = {g.name: g.pattern.order(torch.zeros(g.grid)) for g in groups}
    for share in (0.0, 0.3, 0.8):
        levels = [g.levels[round(share * (len(g.levels) - 1))] for g in groups]
        small = compact(sparse, PruningPlan.of_levels(groups, levels, orders))
        assert costs(levels)[0] == pytest.approx(counted_macs(small, inputs), rel=1e-9)
    half = CostModel.of(sparse, {"input_ids": tokens(32)}, groups)
    saved, less = (c([0] * len(groups))[0] - c.dense[0] for c in (costs, half))
    assert less == pytest.approx(saved / 4)


def test_the_blocks_that_are_there_are_all_units() -> None:
    """36 of 64 blocks of a causal mask exist, so half of the sparsity is 18 of them."""
    (group, _) = density_groups(sparsify_attention(tiny("mistral"), block=8, **FULL))
    assert (group.units, group.cells, group.absent) == (36, 64, 28)
    assert group.levels == tuple(range(8, 37))
    assert constrain([group], min_sparsity=0.5, max_sparsity=0.5)[0].levels == (18,)
    again = PruningPlan.from_json(PruningPlan.uniform(tiny_sparse(), [group], 0.5).to_json())
    assert again.sparsity == {group.name: 0.5}
    assert again.groups == (group,)


def tiny_sparse() -> Any:
    return sparsify_attention(tiny("mistral"), block=8, **FULL)


def test_full_attention_of_a_sparse_model_is_the_dense_one() -> None:
    sparse, x = sparsify_attention(tiny("bert"), block=4, window=1), tokens()
    before = logits(sparse, x)
    torch.testing.assert_close(logits(with_full_attention(sparse), x), logits(tiny("bert"), x))
    assert torch.equal(logits(sparse, x), before)


def test_masks_from_elsewhere_have_no_groups() -> None:
    sparse = sparsify_attention(tiny("bert"), block=8)
    next(m for m in sparse.modules() if hasattr(m, "block_mask")).block_mask[0, 0, 1] = False
    with pytest.raises(GroupError, match="not what its layout keeps first"):
        density_groups(sparse)
    with pytest.raises(ModelError, match="has no block masks"):
        density_groups(tiny("bert"))
