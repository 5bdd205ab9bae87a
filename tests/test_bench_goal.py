"""The bench of rewards before and after some steps of tuning, on a toy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from prune_env import PruningTask
from prune_env.experiments import bench_goal
from prune_env.experiments.bench_goal import AS_IS, GoalConfig, analyse, facts_of
from prune_env.experiments.config.run import parse
from prune_env.pipeline.project import Project
from prune_env.testing import toy_model


def toy(**options: Any) -> Project:
    dense, generator = toy_model("residual"), torch.Generator().manual_seed(options["seed"])
    images = torch.randn(192, 3, 8, 8, generator=generator)
    with torch.no_grad():
        data = TensorDataset(images, dense(images).argmax(1))
    loader = DataLoader(data, batch_size=16)
    sizes = {"calibration_samples": 32, "repair_samples": 16}
    task = PruningTask.from_model(dense, loader, name="toy", **sizes, **options)
    return Project("toy", dense, task, loader, loader, loader, lambda: toy_model("residual"))


@pytest.mark.long
def test_good_plans_are_paid_tuned_and_compared_and_what_is_finished_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--task", f"{__name__}:toy", "--budgets", "0.6", "--plans", "8", "--evaluations", "14"]
    argv += ["--reward-samples", "32", "--steps", "1,4", "--tune-samples", "64"]
    argv += ["--tune-seeds", "2", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "page")]
    printed = []
    for _ in range(2):
        assert bench_goal.main(argv) == 0
        printed.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        monkeypatch.setattr(bench_goal, "end_of", None)  # another tuning would call it
    assert printed[0]["rows"] == printed[1]["rows"]
    (cell,) = printed[0]["rows"]
    plans = cell["plans"]
    assert len({tuple(plan["kept"]) for plan in plans}) == len(plans) == 8
    assert plans[0]["source"] == "uniform"
    assert {"surrogate", "beside"} <= {plan["source"] for plan in plans}
    for plan in plans:
        assert list(plan["rewards"]) == [AS_IS, "1 steps", "4 steps"]
        assert len(set(plan["rewards"].values())) == 3
        assert len(plan["ends"]) == 2
    assert "the uniform plan ends" in (tmp_path / "page.md").read_text().lower()
    wider = dataclasses.replace(parse(GoalConfig, argv), plans=30)
    kept = tuple(plans[3]["kept"])
    assert facts_of(wider, 0.6, kept)["ends"] == plans[3]["ends"], "more plans find these finished"


def test_what_a_reward_picks_stands_beside_the_uniform_plan_seed_by_seed() -> None:
    def plan(source: str, before: float, after: float, ends: tuple[float, float]) -> dict[str, Any]:
        rewards = {AS_IS: before, "30 steps": after}
        done = [{"divergence": end, "figure": 1 - end} for end in ends]
        return {"source": source, "rewards": rewards, "ends": done}

    plans = [
        plan("uniform", 0.9, 0.30, (0.20, 0.22)),
        plan("evolution", 0.5, 0.40, (0.30, 0.32)),
        plan("surrogate", 0.6, 0.20, (0.10, 0.12)),
    ]
    found = analyse(GoalConfig(resamples=50), plans)
    before, after = found["rewards"][AS_IS], found["rewards"]["30 steps"]
    assert (before["picks"], after["picks"]) == ("evolution", "surrogate")
    assert before["spearman"] == pytest.approx(-0.5)
    assert after["spearman"] == after["spearman_figure"] == pytest.approx(1.0)
    assert before["to_uniform"] == pytest.approx(0.31 / 0.21)
    assert (after["least"], after["most"]) == pytest.approx((0.5, 0.12 / 0.22))
    assert found["reliability"] == pytest.approx(1.0)
    assert found["best"]["source"] == "surrogate"
