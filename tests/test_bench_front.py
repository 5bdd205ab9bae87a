"""The bench of budgets that nobody asked for, on a toy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prune_env.experiments import bench_front


@pytest.mark.long
def test_every_other_budget_has_a_ratio_and_what_is_finished_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--task", "digits", "--budgets", "0.6,0.3", "--others", "0.4", "--evaluations", "12"]
    argv += ["--reward-samples", "64", "--held-out", "64", "--draws", "2"]
    argv += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "page")]
    printed = []
    for _ in range(2):
        assert bench_front.main(argv) == 0
        printed.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert printed[0]["rows"] == printed[1]["rows"]
    assert len(printed[0]["rows"]) == 2 * 2
    assert all(row["held_out"] > 0 for row in printed[0]["rows"])
    assert "over all budgets" in (tmp_path / "page.md").read_text()
