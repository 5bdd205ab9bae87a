"""What calibrating and laddering a transformer takes beside its weights, by depth.

    python -m experiments.bench_memory --out experiments/results/memory_mistral

Mistral networks with random weights read random tokens; units are the KV groups of heads and the
neurons. Peak memory (resident set) is that of a fresh process for every depth, less the peak of one
that only loads the network and runs one batch through it. The statistics of a network that would
take more than half the bytes of its weights (and more than 64 MB) are collected in portions.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from prune_env.experiments.benches.harness import BenchFlags, bench
from prune_env.experiments.config.run import option
from prune_env.experiments.report.publishing import markdown, note

LIMIT = 3
"""Times the bytes of the weights that may be taken, beside the largest covariance."""


@dataclass(frozen=True)
class MemoryConfig(BenchFlags):
    """Calibrate, score and factorise networks of several depths, each in a process of its own."""

    depths: tuple[int, ...] = option((3, 6, 9, 12), "blocks of each network")
    width: int = option(512, "features")
    neurons: int = option(1376, "of each MLP")
    heads: int = option(8, "query heads")
    kv_heads: int = option(4, "key and value heads")
    vocabulary: int = option(1000, "tokens there are")
    rows: int = option(32, "rows of calibration tokens")
    tokens: int = option(128, "tokens of a row")
    batch_size: int = option(4, "rows run together")
    criterion: str = option("wanda", "what orders the units; a name in SCORERS")
    seed: int = option(0, "seed of everything random")


def measure(config: MemoryConfig) -> dict[str, Any]:
    """A row for each depth; the parent stays small, as children inherit its peak."""
    rows = []
    for depth in config.depths:
        base = _apart(loaded, config, depth)
        built = _apart(laddered, config, depth)
        taken = built["peak"] - base["peak"]
        limit = LIMIT * built["weights"] + built["largest"]
        rows.append(
            {
                "depth": depth,
                "weights": built["weights"],
                "largest": built["largest"],
                "taken": taken,
                "limit": limit,
                "within": taken <= limit,
                "passes": built["passes"],
                "seconds": built["seconds"],
            }
        )
        note(f"{depth} blocks: {taken / 2**20:.0f} MB of {limit / 2**20:.0f} MB")
    return {"rows": rows, "all_within": all(row["within"] for row in rows)}


def _apart(work: Callable[[MemoryConfig, int], Any], config: MemoryConfig, depth: int) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, config, depth).result()


def loaded(config: MemoryConfig, depth: int) -> dict[str, Any]:
    """Peak of a process that has the network and has run one batch."""
    _network(config, depth)
    return {"peak": _peak()}


def laddered(config: MemoryConfig, depth: int) -> dict[str, Any]:
    """Peak of a process that also calibrates, scores and factorises."""
    from prune_env.criteria.scorers import Evidence, score_groups
    from prune_env.repair.build import build_ladders

    groups = _apart(discovered, config, depth)
    model, batches = _network(config, depth)
    start, passes = time.perf_counter(), []

    def score(portion: Any, statistics: Any) -> Any:
        passes.append(len(portion))
        return score_groups(config.criterion, model, portion, Evidence(statistics, dict))

    ladders = build_ladders(model, batches, groups, score).ladders
    columns = [len(c.columns_D) for found in ladders.consumers.values() for c in found]
    return {
        "peak": _peak(),
        "seconds": round(time.perf_counter() - start, 1),
        "passes": len(passes),
        "largest": 8 * max(columns) ** 2,
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
    }


def discovered(config: MemoryConfig, depth: int) -> Any:
    """The groups of the network, which are plain data: tracing has a peak of its own."""
    from prune_env.structure.discover import find_groups

    model, batches = _network(config, depth)
    return [group for group in find_groups(model, batches[0].inputs) if not group.frozen]


def _network(config: MemoryConfig, depth: int) -> Any:
    """The network, once run, and calibration batches."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from prune_env.quality.batches import Batch
    from prune_env.structure.inputs import call_model

    if config.threads:
        torch.set_num_threads(config.threads)
    shape = MistralConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.neurons,
        num_hidden_layers=depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        use_cache=False,
    )
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(config.seed)
        model = MistralForCausalLM(shape).eval()
    generator = torch.Generator().manual_seed(config.seed)
    shape_BT = (config.rows, config.tokens)
    ids_BT = torch.randint(config.vocabulary, shape_BT, generator=generator)
    batches = [Batch({"input_ids": ids}, ids[:, 0]) for ids in ids_BT.split(config.batch_size)]
    with torch.no_grad():
        call_model(model, batches[0].inputs)
    return model, batches


def _peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def page(figures: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    settings, rows = figures["settings"], figures["rows"]
    head = ["blocks", "weights", "taken", "of the weights", "limit", "passes", "seconds"]
    cells = [
        [
            str(row["depth"]),
            f"{row['weights'] / 2**20:.0f} MB",
            f"{row['taken'] / 2**20:.0f} MB",
            f"{row['taken'] / row['weights']:.2f}",
            f"{row['limit'] / 2**20:.0f} MB",
            str(row["passes"]),
            f"{row['seconds']:.1f}",
        ]
        for row in rows
    ]
    return (
        f"# Memory of calibration and ladders, Mistral {settings['width']} wide with "
        f"{settings['neurons']} neurons\n\nPeak beside the loaded network, for all KV groups and "
        f"neurons, {settings['rows'] * settings['tokens']:,} tokens, criterion "
        f"{settings['criterion']}. The limit is {LIMIT} times the weights and the largest "
        f"covariance ({rows[-1]['largest'] / 2**20:.0f} MB).\n\n{markdown(head, cells)}"
    )


main = bench("bench_memory", MemoryConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
