"""Networks on a device, loaders on the host: nothing meets what lies elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from delivered import labelled
from elsewhere import CUDA, Elsewhere
from torch import nn
from toys import NAMES, close

from prune_env import PruneEnv, PruningTask, apply, finetune, load, save
from prune_env.recovery import FinetuneSettings, evaluate
from prune_env.structure.inputs import map_tensors
from prune_env.testing import toy_inputs, toy_model

SMALL: dict[str, Any] = {
    "calibration_samples": 12,
    "reward_samples": 12,
    "repair_samples": 8,
    "budget": 0.7,
    "precision": "float32",
}


VARIATIONS = ("channel_shuffle", "grouped", "last_channels", "padded_shortcut")
"""Of toys that are here too."""


def data(name: str) -> Any:
    return labelled(toy_model(name), lambda seed, size: toy_inputs(name, seed=seed, batch=size))


def delivered(model: nn.Module, name: str, folder: Path, **options: Any) -> dict[str, Any]:
    """From the task to a tuned network; the info of an episode, and outputs on the host."""
    batches = data(name)
    task = PruningTask.from_model(model, batches, **{**SMALL, **options})
    env, over, info = PruneEnv(task), False, {}
    env.reset()
    while not over:
        *_, over, _, info = env.step(np.array([task.uniform_sparsity], np.float32))
    network = env.network()
    settings = FinetuneSettings(epochs=1, learning_rate=1e-3)
    tuned = finetune(
        network, batches, batches, settings=settings, teacher=model, objective=task.objective,
        checkpoint=folder / "tune.pt",
    )  # fmt: skip
    same = apply(env.plan, model, batches)
    save(folder / "model", network, env.plan)
    kept = load(folder / "model", lambda: toy_model(name))
    measured = evaluate(tuned.model, batches, objective=task.objective, reference=model)
    device = next(model.parameters()).device
    assert {p.device for p in (*network.parameters(), *same.parameters())} == {device}
    states = [network.state_dict(), same.state_dict(), kept.state_dict()]
    return {"info": info, "figure": measured.figure, "states": [host(state) for state in states]}


def host(state: Any) -> Any:
    return map_tensors(lambda tensor: tensor.cpu(), dict(state))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(n, {}, marks=pytest.mark.slow if n in VARIATIONS else ()) for n in NAMES]
    + [("residual", {"criterion": name}) for name in ("taylor", "wanda", "geometric_median")]
    + [("chain", {"units": "unstructured", "on": "params"})],
)
def test_where_a_network_lies_makes_no_difference(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    here = delivered(toy_model(name), name, tmp_path / "here", **options)
    with Elsewhere():
        model = toy_model(name).to("cuda").eval()
        assert {p.device for p in model.parameters()} == {CUDA}
        there = delivered(model, name, tmp_path / "there", **options)
    assert here["info"]["plan"] == there["info"]["plan"]
    assert here["info"]["divergence"] == pytest.approx(there["info"]["divergence"], rel=1e-3)
    for one, other in zip(here["states"], there["states"], strict=True):
        assert one.keys() == other.keys()
        assert close([*one.values()], [*other.values()], 1e-3)


def test_the_pretence_refuses_what_a_device_refuses() -> None:
    with Elsewhere():
        away = torch.ones(3).to("cuda")
        assert away.device == (away + 1).device == CUDA
        assert away.cpu().device.type == "cpu"
        for mixed in (lambda: away + torch.ones(3), lambda: nn.Linear(3, 2)(away)):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            away.numpy()
