"""A pruned network on disk: the same bits back, and one clear error for each thing wrong."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Killed, damaged, killed_at
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toys import NAMES, identical, outputs, snapshot, toy

from prune_env.deploy.bundle import (
    METADATA,
    PLAN,
    WEIGHTS,
    load,
    load_masks,
    load_weights_into,
    save,
    size_on_disk,
)
from prune_env.errors import ModelError, PlanError, RunError
from prune_env.plan.cut import compact
from prune_env.plan.plan import PruningPlan
from prune_env.recovery.masks import KeepMasks
from prune_env.storage import load_described, read_json, save_tensors
from prune_env.structure.weights import weight_groups
from prune_env.testing import TOYS, toy_inputs, toy_model


def bundle(folder: Path, name: str = "residual", sparsity: float = 0.5) -> nn.Module:
    """Save a pruned toy whose weights no factory makes; returns it."""
    model = toy_model(name, seed=7)
    plan = PruningPlan.uniform(model, toy(name).groups, sparsity)
    small = compact(model, plan)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=noise))
    save(folder, small, plan, {"accuracy": 0.5})
    return small


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_network_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    small = bundle(tmp_path / "deep" / name, name).eval()
    again = load(tmp_path / "deep" / name, TOYS[name])
    assert identical(snapshot(small), snapshot(again))
    pairs = zip(outputs(small, toy_inputs(name)), outputs(again, toy_inputs(name)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not again.training


def test_the_folder_holds_plain_files(tmp_path: Path) -> None:
    small = bundle(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((WEIGHTS, PLAN, METADATA))
    described = read_json(tmp_path / METADATA, "metadata")
    assert described["metadata"] == {"accuracy": 0.5}
    assert described["parameters"] == sum(p.numel() for p in small.parameters())
    stored = sum(t.numel() * t.element_size() for t in small.state_dict().values())
    assert stored < size_on_disk(tmp_path) < stored + 5000


def test_tied_weights_come_back_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

    save(tmp_path, model := Tied(), PruningPlan((), {}))
    again = load(tmp_path, Tied)
    assert again.a.weight is again.b.weight
    assert identical(snapshot(model), snapshot(again))


def test_copies_for_people_are_not_needed(tmp_path: Path) -> None:
    """One file is the network: what lies beside it can be lost, or be of another network."""
    small = bundle(tmp_path)
    assert PruningPlan.load(tmp_path / PLAN).kept
    (tmp_path / PLAN).write_text("{}")
    (tmp_path / METADATA).unlink()
    assert identical(snapshot(small), snapshot(load(tmp_path, TOYS["residual"])))


def test_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a complete pruned model"):
        load(tmp_path / "nowhere", TOYS["residual"])


def test_the_wrong_factory_is_refused(tmp_path: Path) -> None:
    bundle(tmp_path)
    with pytest.raises(PlanError, match=r"factory does not make the dense network of .*Chain"):
        load(tmp_path, TOYS["chain"])


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    bundle(tmp_path)
    small = toy_model("residual")
    with pytest.raises(ModelError, match=r"weights in .* do not fit"):
        load_weights_into(small, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_that_did_not_make_the_network_is_refused(name: str, tmp_path: Path) -> None:
    """What `load` would refuse is not written, and what was there stays."""
    small = bundle(tmp_path, name)
    for sparsity in (0.0, 0.8):
        other = PruningPlan.uniform(toy_model(name), toy(name).groups, sparsity)
        with pytest.raises(PlanError, match=r"not made with this plan: .* leaves \d+ along dim"):
            save(tmp_path, small, other)
    for stranger in [other for other in NAMES if other != name][:2]:
        with pytest.raises(PlanError, match="not made with this plan"):
            save(
                tmp_path, small, PruningPlan.uniform(toy_model(stranger), toy(stranger).groups, 0.5)
            )
    assert identical(snapshot(small), snapshot(load(tmp_path, TOYS[name])))


def test_state_that_is_not_in_tensors_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"calls": 3}

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(ModelError, match="'_extra_state' in the state of Extra is no parameter"):
        save(tmp_path, Extra(2, 2), PruningPlan((), {}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_type_of_the_numbers_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    small = bundle(tmp_path, "chain").to(dtype)
    save(tmp_path, small, PruningPlan.load(tmp_path / PLAN))
    again = load(tmp_path, TOYS["chain"])
    assert identical(snapshot(small), snapshot(again))
    assert {p.dtype for p in again.parameters()} == {dtype}


def test_a_damaged_network_is_refused(tmp_path: Path) -> None:
    bundle(tmp_path, "chain")
    whole = (tmp_path / WEIGHTS).read_bytes()

    @given(data=st.data())
    def refused(data: st.DataObject) -> None:
        broken = damaged(whole, data)
        (tmp_path / WEIGHTS).write_bytes(broken)
        with pytest.raises(RunError) if broken != whole else contextlib.nullcontext():
            load(tmp_path, TOYS["chain"])

    refused()


@pytest.mark.parametrize("parts", [{}, {"plan": "{}"}, {"description": "[]", "plan": "{}"}])
def test_tensors_that_are_no_pruned_model_say_so(parts: dict[str, str], tmp_path: Path) -> None:
    save_tensors(tmp_path / WEIGHTS, {"a": torch.ones(2)}, parts)
    with pytest.raises(RunError, match=r"holds no pruned model .*Save it again"):
        load(tmp_path, TOYS["chain"])


def test_another_format_says_which(tmp_path: Path) -> None:
    bundle(tmp_path)
    tensors, parts = load_described(tmp_path / WEIGHTS)
    older = json.dumps({**json.loads(parts["description"]), "format": 1})
    save_tensors(tmp_path / WEIGHTS, tensors, {**parts, "description": older})
    with pytest.raises(RunError, match="format 1, this version reads 2"):
        load(tmp_path, TOYS["residual"])


def test_a_save_that_dies_anywhere_leaves_the_old_network_or_the_new(tmp_path: Path) -> None:
    old, found = snapshot(bundle(tmp_path)), []
    for step in range(40):
        finished = False
        with contextlib.suppress(Killed), killed_at(step):
            bundle(tmp_path, sparsity=0.7)
            finished = True
        found.append(snapshot(load(tmp_path, TOYS["residual"])))
        if finished:
            break
    assert finished
    assert len(found) > 10
    assert all(identical(one, old) or identical(one, found[-1]) for one in found)
    assert not identical(old, found[-1])


def test_metadata_that_is_not_json_spoils_nothing(tmp_path: Path) -> None:
    small = bundle(tmp_path)
    plan = PruningPlan.load(tmp_path / PLAN)
    with pytest.raises(RunError, match="metadata cannot be written as JSON"):
        save(tmp_path, small, plan, {"bad": object()})
    load(tmp_path, TOYS["residual"])


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*Choose a folder you may write to"):
        bundle(tmp_path / "file" / "model")


# ---- keep masks


def sparse(folder: Path, kind: str, **options: Any) -> tuple[nn.Module, PruningPlan]:
    model = toy_model("chain", seed=7)
    groups = weight_groups(model, kind, layers=("hidden", "features.2"))
    plan = PruningPlan.uniform(model, groups, 0.5)
    save(folder, small := compact(model, plan), plan, **options)
    return small, plan


@pytest.mark.parametrize("kind", ["unstructured", "per_row", "2:4", "block:2"])
def test_masks_are_saved_beside_the_weights_they_belong_to(kind: str, tmp_path: Path) -> None:
    small, plan = sparse(tmp_path, kind)
    masks, of_plan = load_masks(tmp_path), KeepMasks.of_plan(plan, small)
    assert masks.digest == of_plan.digest
    assert masks.removed == sum(int((small.get_parameter(n) == 0).sum()) for n in masks.keep) > 0
    assert identical(snapshot(load(tmp_path, TOYS["chain"])), snapshot(small.eval()))
    bundle(tmp_path, "chain")  # structured, into the same folder
    assert load_masks(tmp_path).keep == {}


def test_masks_of_the_users_own_come_back(tmp_path: Path) -> None:
    """A ticket empties a matrix: the loaded network does not train it again."""
    model = toy_model("chain")
    ticket = KeepMasks({"hidden.weight": torch.zeros(12, 96, dtype=torch.bool)})
    ticket.apply_to(model)
    save(tmp_path, model, PruningPlan((), {}), masks=ticket)
    again = load(tmp_path, TOYS["chain"])
    assert load_masks(tmp_path).digest == ticket.digest
    assert [n for n, p in again.named_parameters() if not p.requires_grad] == ["hidden.weight"]


def test_a_plan_of_another_network_is_not_saved(tmp_path: Path) -> None:
    small, plan = sparse(tmp_path, "unstructured")
    narrow = PruningPlan.uniform(small, toy("chain").live, 0.5)
    with pytest.raises(PlanError, match="not made with this plan"):
        save(tmp_path, compact(small, narrow), plan)
