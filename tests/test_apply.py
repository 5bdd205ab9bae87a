"""`apply`: what it needs, says aloud, and refuses; that it keeps its promise is a law."""

from __future__ import annotations

import dataclasses
import json
import logging
from functools import partial
from typing import Any

import pytest
import torch
from delivered import Delivery, episode, labelled
from torch import nn
from toys import identical, snapshot

from prune_env import apply
from prune_env.errors import ConfigError, DataError, ModelError, PlanError
from prune_env.plan.cut import compact
from prune_env.plan.plan import PruningPlan
from prune_env.plan.recipe import Recipe
from prune_env.quality.batches import Batch
from prune_env.repair.overlays import least_squares
from prune_env.repair.repairs import Repair, reestimate_batchnorm
from prune_env.structure.discover import find_groups
from prune_env.testing import toy_inputs, toy_model


def residual(**options: Any) -> Delivery:
    model = toy_model("residual")
    return episode(model, labelled(model, partial(toy_inputs, "residual")), **options)


def uniform(model: nn.Module) -> PruningPlan:
    return PruningPlan.uniform(model, find_groups(model, toy_inputs("residual")), 0.5)


def test_a_repair_of_ones_own_must_be_given_again() -> None:
    calls: list[int] = []

    def finish(model: nn.Module, batches: Any) -> None:
        calls.append(len(batches))
        reestimate_batchnorm(model, batches)

    own = Repair(least_squares, finish)
    case = residual(repair=own)
    plan = PruningPlan.from_json(case.env.plan.to_json())
    with pytest.raises(ConfigError, match=r"repair of your own.*apply\(plan, model, data, repair="):
        apply(plan, case.model, case.data)
    calls.clear()
    applied = apply(plan, case.model, case.data, own)
    assert calls == [1]  # once, on all 16 calibration samples
    assert identical(snapshot(applied), snapshot(case.env.network()))
    named = apply(plan, case.model, case.data, "least_squares+batchnorm")
    assert identical(snapshot(applied), snapshot(named))


def test_a_plan_without_a_recipe_is_repaired_as_a_task_would_by_default() -> None:
    case = residual()
    plan = uniform(case.model)
    assert plan.recipe is None
    half = case.data[:2]  # as a task would see them: one batch
    (images,) = [torch.cat([x for x, _ in half])]  # type: ignore[arg-type]
    batch = Batch(images.contiguous(memory_format=torch.channels_last), torch.zeros(len(images)))
    raw = compact(case.model, plan)
    assert identical(snapshot(apply(plan, case.model, half, "none")), snapshot(raw))
    reestimate_batchnorm(raw, [batch])
    again = apply(plan, case.model, half, "batchnorm")
    assert identical(snapshot(again), snapshot(raw))
    default = apply(plan, case.model, half)
    assert not identical(snapshot(default), snapshot(raw))
    as_task = dataclasses.replace(plan, recipe=Recipe(calibration_samples=16, batch_size=16))
    assert identical(snapshot(default), snapshot(apply(as_task, case.model, half)))


def test_the_dense_network_is_left_alone_and_what_is_frozen_stays_frozen() -> None:
    case = residual()
    case.model.train().get_submodule("stem").requires_grad_(False)
    before = snapshot(case.model)
    applied = apply(case.env.plan, case.model, case.data)
    assert identical(before, snapshot(case.model))
    assert case.model.training
    assert not applied.training
    frozen = {name for name, p in applied.named_parameters() if not p.requires_grad}
    assert frozen == {"stem.0.weight", "stem.1.weight", "stem.1.bias"}
    shared = {p.data_ptr() for p in case.model.parameters()}
    assert not shared & {p.data_ptr() for p in applied.parameters()}


def said(case: Delivery, caplog: pytest.LogCaptureFixture, **changed: Any) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        plan = changed.get("plan", case.env.plan)
        apply(plan, changed.get("model", case.model), changed.get("data", case.data))
    return caplog.text


def test_other_samples_or_weights_than_were_measured_are_said_aloud(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = residual()
    assert said(case, caplog) == ""
    assert "first samples are others than those" in said(case, caplog, data=case.data[::-1])
    few = said(case, caplog, data=case.data[:1])
    assert "the loader has 8 samples, the plan asks for 16" in few
    assert "other weights" in said(case, caplog, model=toy_model("residual", seed=1))
    assert said(case, caplog, plan=uniform(case.model)).count("WARNING") == 1  # 32 of 500 samples


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], DataError, "no samples"),
        ([(torch.randn(8, 1, 8, 8), torch.zeros(8))], ModelError, "does not run on the data"),
        (3, DataError, "cannot be iterated"),
    ],
    ids=["empty", "shape", "type"],
)
def test_data_that_cannot_be_used_are_refused(data: Any, error: Any, message: str) -> None:
    model = toy_model("residual")
    with pytest.raises(error, match=message):
        apply(uniform(model), model, data)


def test_another_network_or_repair_or_number_is_refused() -> None:
    model, data = toy_model("residual"), [(torch.randn(8, 3, 8, 8), torch.zeros(8))]
    plan = uniform(model)
    with pytest.raises(PlanError, match="does not fit Chain"):
        apply(plan, toy_model("chain"), data)
    with pytest.raises(ConfigError, match="no repair 'magic'"):
        apply(plan, model, data, "magic")
    with pytest.raises(ConfigError, match="calibration_samples is 0; give a whole number"):
        apply(plan, model, data, calibration_samples=0)
    with torch.no_grad():
        model.get_parameter("head.weight")[0] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        apply(plan, model, data)


@pytest.mark.parametrize(
    "changed",
    [
        {"repair": 3}, {"calibration_samples": 0}, {"calibration_samples": "x"},
        {"batch_size": -1}, {"seed": True}, {"seed": 0.5}, {"data": None}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_recipe_is_refused(changed: dict[str, Any]) -> None:
    content = json.loads(residual().env.plan.to_json())
    del content["sha256"]
    whole = content["recipe"]
    assert whole["calibration_samples"] == 16
    for recipe in ({**whole, **changed}, 3, [], "x"):
        content["recipe"] = recipe
        with pytest.raises(PlanError, match="recipe"):
            PruningPlan.from_json(json.dumps(content))
