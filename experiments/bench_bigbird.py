"""What Big Bird attention costs and saves: perplexity untrained, and time of every backend.

    python -m experiments.bench_bigbird
    python -m experiments.bench_bigbird --model ../shared/models/stories260K \\
        --tokens ../shared/models/stories260K/tinystories_tokens.npz --threads 1 \\
        --out experiments/results/bigbird_stories260k

Without --model only the time is measured. Time is of attention alone, on random queries and keys;
the backends take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prune_env.experiments.benches.harness import BenchFlags, bench
from prune_env.experiments.config.run import option
from prune_env.experiments.report.publishing import markdown, note

COUNTS = ((3, 1, 0), (3, 1, 1), (3, 1, 2), (5, 1, 0), (3, 0, 0), (1, 1, 0))
"""Blocks of window, global and random attention."""


@dataclass(frozen=True)
class BigBirdConfig(BenchFlags):
    """Perplexity of a language model under block-sparse attention, and the time of attention."""

    model: str = option("", "folder of a causal transformers model; empty: time only")
    tokens: str = option("", "npz file with token ids (rows, tokens)")
    split: str = option("evaluation", "array of that file to measure on")
    block: int = option(16, "tokens per block in the model")
    length: int = option(2048, "tokens whose attention is timed")
    timed_block: int = option(64, "tokens per block of it")
    heads: int = option(8, "heads of it")
    width: int = option(64, "width of a head")
    repeats: int = option(9, "timed calls of every backend; the median counts")
    seed: int = option(0, "seed of everything random")


def quality(config: BigBirdConfig) -> dict[str, Any]:
    """Perplexity of the dense model and of every layout, and how far the backends are apart."""
    import torch

    from prune_env.attention.attach import sparsify_attention

    model, tokens_RT = load(config)
    figures: dict[str, Any] = {"dense_perplexity": perplexity(model, tokens_RT)}
    shared: dict[str, Any] = {
        "block": config.block, "seed": config.seed, "length": tokens_RT.shape[1],
    }  # fmt: skip
    rows = []
    for window, leading, random in COUNTS:
        counts = {"window": window, "global_": leading, "random": random}
        both = [
            sparsify_attention(model, backend=name, **shared, **counts)
            for name in ("masked", "gather")
        ]
        with torch.no_grad():
            masked, gathered = (sparse(tokens_RT[:8]).logits for sparse in both)
        apart = float((masked - gathered).abs().max())
        row = {**counts, "perplexity": perplexity(both[1], tokens_RT), "gather_masked": apart}
        row |= {"kept": kept_share(both[1], tokens_RT.shape[1]), "macs": macs(both[1], tokens_RT)}
        rows.append(row)
        note(f"{window}, {leading}, {random}: {rows[-1]['perplexity']:.4f}")
    whole = sparsify_attention(model, random=tokens_RT.shape[1], **shared)
    everything = macs(whole, tokens_RT)
    for row in rows:
        row["macs_ratio"] = row["macs"] / everything
    return {**figures, "rows": rows, "macs": everything, "tokens": list(tokens_RT.shape)}


def macs(sparse: Any, tokens_RT: Any) -> float:
    """MACs of the network for one row of tokens, of its attention those of kept blocks only."""
    from prune_env.costs.model import CostModel, metric_index

    inputs = {"input_ids": tokens_RT[:2], "use_cache": False}
    return float(CostModel.of(sparse, inputs, ()).dense[metric_index("macs")])


def load(config: BigBirdConfig) -> tuple[Any, Any]:
    """The model in eval mode, and the token ids it is measured on, (R rows, T tokens)."""
    import numpy as np
    import torch

    from prune_env.errors import DataError
    from prune_env.experiments.networks.pretrained import load_pretrained

    with np.load(config.tokens) as arrays:
        if config.split not in arrays:
            raise DataError(
                f"'{config.tokens}' has no array '{config.split}'. Choose one of "
                f"{', '.join(arrays)}."
            )
        tokens_RT = torch.from_numpy(arrays[config.split].astype("int64"))
    return load_pretrained(config.model), tokens_RT


def perplexity(model: Any, tokens_RT: Any) -> float:
    """exp of the mean negative log-likelihood of every next token in its row."""
    import torch

    total = 0.0
    with torch.no_grad():
        for rows in tokens_RT.split(16):
            logits = model(rows, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).double(), rows[:, 1:].flatten(), reduction="sum"
            )
            total += float(loss)
    return math.exp(total / tokens_RT[:, 1:].numel())


def kept_share(sparse: Any, length: int) -> float:
    """Blocks kept over the blocks that full attention of the same direction reads."""
    from prune_env.attention.checks import sparse_modules

    kept = whole = 0
    for module in sparse_modules(sparse).values():
        used = length // module.block_layout.block
        blocks_HNN = module.block_mask[:, :used, :used]
        everything = blocks_HNN.new_ones(blocks_HNN.shape)
        kept += int(blocks_HNN.sum())
        whole += int((everything.tril() if module.block_layout.causal else everything).sum())
    return kept / whole


def measure(config: BigBirdConfig) -> dict[str, Any]:
    """Times of attention and, with a model, what it costs in perplexity."""
    return {"times": times(config), **(quality(config) if config.model else {})}


def times(config: BigBirdConfig) -> list[dict[str, Any]]:
    """Median seconds of dense, masked and gathered attention, causal and not."""
    import torch

    from prune_env.attention.backends import Visible, gather, masked
    from prune_env.attention.layout import layout_of

    shape = (1, config.heads, config.length, config.width)
    generator = torch.Generator().manual_seed(config.seed)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
    blocks = config.length // config.timed_block
    rows = []
    for causal in (False, True):
        for random in (0, 2, 6):
            layout = layout_of(
                block=config.timed_block, random=random, seed=config.seed, causal=causal
            )
            visible = Visible(layout.mask(config.heads, blocks), config.timed_block, causal)

            def dense(causal: bool = causal) -> Any:
                return torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, is_causal=causal
                )

            def hidden(visible: Visible = visible) -> Any:
                return masked(query, key, value, visible)

            def gathered(visible: Visible = visible) -> Any:
                return gather(query, key, value, visible)

            with torch.inference_mode():
                seconds = medians([dense, hidden, gathered], config.repeats)
                apart = float((hidden() - gathered()).abs().max())
            kept = float(visible.blocks_HNN.float().mean())
            row = {"causal": causal, "random": random, "kept_of_square": kept}
            row |= dict(zip(("dense", "masked", "gather"), seconds, strict=True))
            rows.append({**row, "gather_masked": apart})
            note(f"causal {causal}, {random} random: {row}")
    return rows


def medians(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each call; they take turns, after one call that does not count."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, found in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds]


def page(figures: Mapping[str, Any]) -> str:
    """Both tables in Markdown."""
    settings = figures["settings"]
    text = "# Big Bird attention\n\n"
    if "rows" in figures:
        rows, tokens = figures["rows"], figures["tokens"]
        text += (
            f"Perplexity of {settings['model'].rpartition('/')[2]}, untrained with its blocks of "
            f"{settings['block']}, on {tokens[0]} rows of {tokens[1]} tokens; dense "
            f"{figures['dense_perplexity']:.4f}.\n\n"
        )
        head = ["window", "global", "random", "blocks read", "MACs of the network", "perplexity",
                "gather - masked"]  # fmt: skip
        text += markdown(
            head,
            [
                [str(row["window"]), str(row["global_"]), str(row["random"]),
                 f"{row['kept']:.1%}", f"{row['macs_ratio']:.1%}", f"{row['perplexity']:.4f}",
                 f"{row['gather_masked']:.0e}"]
                for row in rows
            ],
        ) + "\n"  # fmt: skip
    text += (
        f"Milliseconds of attention alone: {settings['length']:,} tokens, {settings['heads']} "
        f"heads of {settings['width']}, blocks of {settings['timed_block']}, (3, 1, random) "
        f"blocks, {settings['threads']} thread(s), dense being "
        "`scaled_dot_product_attention`.\n\n"
    )
    head = ["causal", "random", "of all blocks", "dense", "masked", "gather", "dense / gather"]
    return text + markdown(
        head,
        [
            ["yes" if row["causal"] else "no", str(row["random"]), f"{row['kept_of_square']:.1%}",
             *(f"{1000 * row[name]:.1f}" for name in ("dense", "masked", "gather")),
             f"{row['dense'] / row['gather']:.1f}"]
            for row in figures["times"]
        ],
    )  # fmt: skip


main = bench("bench_bigbird", BigBirdConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
