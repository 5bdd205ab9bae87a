"""A pruned network on disk: the same bits back, and one clear error for each thing wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toys import NAMES, identical, outputs, snapshot, toy

from prune_env.deploy.bundle import (
    MASKS,
    METADATA,
    PLAN,
    WEIGHTS,
    load,
    load_masks,
    save,
    size_on_disk,
)
from prune_env.errors import ModelError, PlanError, RunError
from prune_env.recovery.masks import KeepMasks
from prune_env.structure.weights import weight_groups
from prune_env.surgery.apply import compact
from prune_env.surgery.plan import PruningPlan
from prune_env.testing import TOYS, toy_inputs, toy_model


def bundle(folder: Path, name: str = "residual", sparsity: float = 0.5) -> nn.Module:
    """Save a pruned toy whose weights no factory makes; returns it."""
    model = toy_model(name, seed=7)
    plan = PruningPlan.uniform(model, toy(name).groups, sparsity)
    small = compact(model, plan)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
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
    described = json.loads((tmp_path / METADATA).read_text())
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


@pytest.mark.parametrize("missing", [WEIGHTS, PLAN, METADATA])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    bundle(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(RunError, match=f"not a complete pruned model: {missing} missing"):
        load(tmp_path, TOYS["residual"])


def test_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a complete pruned model"):
        load(tmp_path / "nowhere", TOYS["residual"])


def test_the_wrong_factory_is_refused(tmp_path: Path) -> None:
    bundle(tmp_path)
    with pytest.raises(PlanError, match=r"factory does not make the dense network of .*Chain"):
        load(tmp_path, TOYS["chain"])


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    bundle(tmp_path / "half")
    bundle(tmp_path / "third", sparsity=0.7)
    (tmp_path / "half" / WEIGHTS).write_bytes((tmp_path / "third" / WEIGHTS).read_bytes())
    with pytest.raises(ModelError, match=r"weights in .* do not fit"):
        load(tmp_path / "half", TOYS["residual"])


def test_damage_is_refused(tmp_path: Path) -> None:
    bundle(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(RunError, match="cannot read tensors"):
        load(tmp_path, TOYS["residual"])
    (tmp_path / PLAN).write_text("{}")
    with pytest.raises(PlanError, match="not a pruning plan"):
        load(tmp_path, TOYS["residual"])


def test_a_killed_overwrite_is_seen_as_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights beside an old plan must not pass for a network."""
    bundle(tmp_path)

    def die(self: PruningPlan, path: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(PruningPlan, "save", die)
    with pytest.raises(KeyboardInterrupt):
        bundle(tmp_path, sparsity=0.7)
    with pytest.raises(RunError, match=f"{METADATA} missing"):
        load(tmp_path, TOYS["residual"])


def test_metadata_that_is_not_json_spoils_nothing(tmp_path: Path) -> None:
    small = bundle(tmp_path)
    plan = PruningPlan.load(tmp_path / PLAN)
    with pytest.raises(TypeError):
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
    assert (tmp_path / MASKS).is_file()
    masks, of_plan = load_masks(tmp_path), KeepMasks.of_plan(plan, small)
    assert masks.digest == of_plan.digest
    assert masks.removed == sum(int((small.get_parameter(n) == 0).sum()) for n in masks.keep) > 0
    assert identical(snapshot(load(tmp_path, TOYS["chain"])), snapshot(small.eval()))
    bundle(tmp_path, "chain")  # structured, into the same folder
    assert not (tmp_path / MASKS).exists()
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


def test_missing_or_foreign_masks_are_refused(tmp_path: Path) -> None:
    sparse(tmp_path / "one", "unstructured")
    sparse(tmp_path / "other", "2:4")
    shutil.copy(tmp_path / "other" / MASKS, tmp_path / "one" / MASKS)
    with pytest.raises(RunError, match="does not hold the keep masks"):
        load(tmp_path / "one", TOYS["chain"])
    (tmp_path / "other" / MASKS).unlink()
    with pytest.raises(RunError, match="does not hold the keep masks"):
        load(tmp_path / "other", TOYS["chain"])


def test_a_plan_of_another_network_is_not_saved(tmp_path: Path) -> None:
    small, plan = sparse(tmp_path, "unstructured")
    narrow = PruningPlan.uniform(small, toy("chain").live, 0.5)
    with pytest.raises(PlanError, match="the shape"):
        save(tmp_path, compact(small, narrow), plan)
