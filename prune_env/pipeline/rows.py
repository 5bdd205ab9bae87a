"""What a report is made of: plain values, a row per plan."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prune_env.mdp.rewards import Outcome
from prune_env.mdp.task import PruningTask
from prune_env.pipeline.yardstick import ACCURACY, Yardstick
from prune_env.search.searchers import SearchResult
from prune_env.version import version

Row = dict[str, Any]


def charged(history: Sequence[Outcome]) -> float:
    """Evaluations, looks counted as the parts of one that they are; a whole number where it is."""
    spent = round(math.fsum(outcome.metrics.share for outcome in history), 6)
    return int(spent) if spent == int(spent) else spent


def row_of(
    task: PruningTask, result: SearchResult, kind: str, yardstick: Yardstick = ACCURACY
) -> Row:
    """What the report says of one search."""
    best, costs = result.best, task.costs(result.best.kept)
    return {
        "name": str(result.plan.notes.get("searcher", "")),
        "kind": kind,
        "seed": result.plan.notes.get("seed", 0),
        "evaluations": charged(result.history),
        "search_seconds": result.seconds,
        "reward": best.reward,
        "kl": best.metrics.divergence,
        "kl_error": best.metrics.divergence_error,
        "kl_held_out": None,
        yardstick.key("reward"): yardstick.of(best.metrics),
        yardstick.key("before"): None,
        yardstick.key("after"): None,
        "macs": float(costs[0]),
        "params": float(costs[1]),
        "macs_ratio": best.flops_ratio,
        "params_ratio": best.params_ratio,
        "file_bytes": None,
        "latency_ms": None,
        "sparsity": result.plan.sparsity,
        "kept": {g.name: [k, g.units] for g, k in zip(task.groups, best.kept, strict=True)},
        "history": [
            {
                "reward": outcome.reward,
                yardstick.name: yardstick.of(outcome.metrics),
                "kl": outcome.metrics.divergence,
                "flops_ratio": outcome.flops_ratio,
            }
            for outcome in result.history
        ],
    }


def results_of(task: PruningTask, dense: Mapping[str, Any], rows: Sequence[Row]) -> Row:
    """All that a report says, but for how it was asked for (`command`, `config`, `note`)."""
    shares = {name: task.costs.share(number) for number, name in enumerate(task.costs.names)}
    groups = [
        {
            "name": g.name,
            "units": g.units,
            "macs_share": shares.get(g.name, 0.0),
            "frozen": g.frozen,
        }
        for g in (*task.groups, *task.frozen)
    ]
    return {
        "title": task.name,
        "command": "",
        "config": {},
        "machine": machine(),
        "dense": dict(dense),
        "rows": list(rows),
        "groups": groups,
        "budget": task.budget,
        "on": task.on,
        "note": "",
    }


def processor() -> str:
    """The processor's name; its kind where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the numbers were measured on, and with."""
    return {
        "prune_env": version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": processor(),
        "date": time.strftime("%Y-%m-%d"),
    }
