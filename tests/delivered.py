"""Law 5: the network that `apply` makes of a plan is the one that was measured.

What `info` promised is measured again here without the library: by hand, on the reward samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import close, identical, outputs, snapshot

from prune_env.deploy.bundle import load, save
from prune_env.mdp.env import PruneEnv
from prune_env.mdp.task import PruningTask
from prune_env.plan.cut import compact, masked
from prune_env.plan.delivery import apply
from prune_env.plan.plan import PruningPlan
from prune_env.quality.outputs import Output
from prune_env.structure.groups import PrunableGroup
from prune_env.structure.inputs import Inputs, call_model

Data = Sequence[tuple[Inputs, Tensor]]
BATCH, BATCHES = 8, 4
"""Half of the batches calibrate, the other half is measured."""


@dataclass(frozen=True)
class Delivery:
    """A dense network, its data, and an episode on it."""

    model: nn.Module
    data: Data
    env: PruneEnv
    info: dict[str, Any]
    part: str = ""


def labelled(model: nn.Module, inputs: Callable[[int, int], Inputs], part: str = "") -> Data:
    """Batches of `inputs(seed, samples)` with random classes, one for each row of the logits."""
    found = []
    for seed in range(BATCHES):
        x = inputs(seed, BATCH)
        with torch.no_grad():
            logits = Output(part).logits(call_model(model, x))
        generator = torch.Generator().manual_seed(seed)
        found.append((x, torch.randint(logits.shape[-1], logits.shape[:-1], generator=generator)))
    return found


def episode(
    model: nn.Module,
    data: Data,
    units: str = "structured",
    groups: Sequence[PrunableGroup] | None = None,
    saved: float = 0.35,
    **options: Any,
) -> Delivery:
    """One finished episode, at a budget that takes this fraction of what can be saved."""
    half = BATCH * BATCHES // 2
    fixed = {"calibration_samples": half, "reward_samples": half, "repair_samples": half}
    options = {**fixed, "precision": "float32", "on": "params", **options}
    whole = PruningTask.from_model(model, data, units=units, groups=groups, budget=1.0, **options)
    least = float(whole.costs.ratio(whole.rules.least_G, whole.on))
    env = PruneEnv(whole.at(1.0 - saved * (1.0 - least)))
    env.reset(seed=0)
    done = False
    while not done:
        *_, done, _, info = env.step([env.task.uniform_sparsity])
    return Delivery(model, data, env, info, options.get("output", ""))


SPARSE = "block sparse"
"""Mark of a transformer whose attention reads blocks only."""


@cache
def transformer(name: str) -> nn.Module:
    """A small random transformer; do not change it."""
    from test_transformers import case

    from prune_env.attention.attach import sparsify_attention

    model = case(name.removesuffix(SPARSE).strip()).model
    return (
        sparsify_attention(model, backend="gather", block=4, random=8) if SPARSE in name else model
    )


def groups_of_transformer(name: str, kind: str) -> Sequence[PrunableGroup] | None:
    """Its structured groups, found once for all tests; None: the task finds them.

    That a task finds the same in its own batches is law 7 (`test_transformers.py`).
    """
    from test_transformers import case

    return case(name).groups if kind == "structured" and SPARSE not in name else None


def read_by_transformer(name: str, seed: int, samples: int) -> Inputs:
    """What it reads: tokens, images, or vectors."""
    from test_transformers import FAMILIES

    generator = torch.Generator().manual_seed(seed)
    if name in ("encoder", "packed", "flattened"):
        return torch.randn(samples, 10, 32, generator=generator)
    if "image_size" in FAMILIES.get(name, ("", "", {}))[2]:
        return {"pixel_values": torch.randn(samples, 3, 16, 16, generator=generator)}
    return {"input_ids": torch.randint(1, 64, (samples, 16), generator=generator)}


def require_delivered(case: Delivery, factory: Callable[[], nn.Module], folder: Path) -> None:
    """Law 5, through JSON, and through save and load."""
    before = snapshot(case.model)
    plan = PruningPlan.from_json(case.env.plan.to_json())
    applied = apply(plan, case.model, case.data)
    assert identical(before, snapshot(case.model)), "the dense network was changed"
    assert identical(snapshot(applied), snapshot(case.env.network())), "apply is not env.network()"
    assert not identical(before, snapshot(applied)), "nothing was removed"
    save(folder / "pruned", applied, plan)
    for network in (applied, load(folder / "pruned", factory)):
        accuracy, kl = measured(network, case)
        near = {"rel_tol": 2e-3, "abs_tol": 2e-5}
        assert math.isclose(kl, case.info["kl"], **near), (kl, case.info["kl"])
        assert math.isclose(accuracy, case.info["accuracy"], abs_tol=0.07)  # one near tie


def require_composed(
    model: nn.Module,
    data: Data,
    plans: Sequence[PruningPlan],
    network: nn.Module,
    factory: Callable[[], nn.Module],
    folder: Path,
) -> None:
    """Two rounds are one plan of the dense network: cut, masked, applied, saved and loaded."""
    first, second = plans
    plan = PruningPlan.from_json(first.then(second).to_json())
    assert plan == first.then(second)
    cut = compact(model, plan)
    assert identical(snapshot(cut), snapshot(compact(compact(model, first), second)))
    inputs = data[0][0]
    with masked(model, plan):
        zeroed = outputs(model, inputs)
    assert close(zeroed, outputs(cut, inputs), 1e-4)
    assert identical(snapshot(apply(plan, model, data)), snapshot(network))
    save(folder / "twice", network, plan)
    assert identical(snapshot(load(folder / "twice", factory)), snapshot(network))


def measured(network: nn.Module, case: Delivery) -> tuple[float, float]:
    """Accuracy, and KL from the dense network, on the samples behind the calibration samples."""
    right, kl, read = list[Tensor](), list[Tensor](), Output(case.part)
    for inputs, targets in case.data[len(case.data) // 2 :]:
        with torch.no_grad():
            q, p = (
                read.logits(call_model(model, inputs)).flatten(0, -2).float().log_softmax(-1)
                for model in (network, case.model)
            )
        right.append((q.argmax(-1) == targets.flatten()).double())
        kl.append(F.kl_div(q, p, reduction="none", log_target=True).sum(-1).double())
    return float(torch.cat(right).mean()), float(torch.cat(kl).mean())
