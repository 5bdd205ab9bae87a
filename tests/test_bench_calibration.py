"""The benches of samples and of workers, on toys."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from prune_env import PruningTask
from prune_env.errors import ConfigError
from prune_env.experiments import bench_calibration, bench_workers
from prune_env.experiments.bench_calibration import CalibrationConfig, geometric, numbered, page
from prune_env.experiments.benches.harness import pivoted
from prune_env.experiments.data.loader import CropFlip, Half
from prune_env.pipeline.project import Project
from prune_env.testing import toy_model

ASKED: list[tuple[str, int]] = []


def toy(sample_kind: str, **options: Any) -> Project:
    """A project whose samples are what is asked for, in name."""
    ASKED.append((sample_kind, options["calibration_samples"]))
    dense, generator = toy_model("chain"), torch.Generator().manual_seed(options["seed"])
    images = torch.randn(96, 3, 8, 8, generator=generator)
    images = images + (0.5 if sample_kind == "augmented" else 0.0)
    with torch.no_grad():
        data = TensorDataset(images, dense(images).argmax(1))
    loader = DataLoader(data, batch_size=32)
    task = PruningTask.from_model(dense, loader, name="toy", **options)
    return Project("toy", dense, task, loader, loader, loader, lambda: toy_model("chain"))


def test_kinds_of_samples_are_compared_draw_by_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--task", f"{__name__}:toy", "--kinds", "plain:32,augmented:32", "--budgets", "0.6"]
    argv += [
        "--draws",
        "2",
        "--searchers",
        "random:3",
        "--evaluations",
        "30",
        "--reward-samples",
        "32",
        "--val-samples",
        "64",
    ]
    ASKED.clear()
    printed = []
    for _ in range(2):
        assert bench_calibration.main([*argv, "--runs", str(tmp_path)]) == 0
        printed.append(capsys.readouterr().out)
    assert ASKED == [("plain", 32), ("augmented", 32)] * 2, "what is finished is read"
    figures = [json.loads(text.splitlines()[-1]) for text in printed]
    assert figures[0]["rows"] == figures[1]["rows"]
    rows = figures[0]["rows"]
    assert len(rows) == 2 * 2 * 2
    assert {row["charged"] for row in rows} == {1, 3}
    held = {(r["draw"], r["kind"]): r["held_out"] for r in rows if r["plan"] == "uniform"}
    ratios = [held[draw, "augmented:32"] / held[draw, "plain:32"] for draw in (0, 1)]
    assert f"{math.sqrt(ratios[0] * ratios[1]):.3f} (" in page(figures[0])


def test_a_geometric_mean_has_students_interval() -> None:
    middle, low, high = geometric([0.5, 2.0, 1.0])
    assert middle == pytest.approx(1.0)
    assert math.log(high) == pytest.approx(4.30 * math.log(2) / math.sqrt(3))
    assert low == pytest.approx(1 / high)
    assert geometric([0.7]) == pytest.approx((0.7, 0.7, 0.7))


@pytest.mark.parametrize("kinds", [("plain:",), (":500",), ("half:many",)])
def test_kinds_say_how_many(kinds: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="give a kind, or kind:samples"):
        CalibrationConfig(kinds=kinds)


def test_searchers_say_how_much_they_may_spend() -> None:
    assert numbered("surrogate:50") == ("surrogate", 50)
    assert numbered("surrogate") == ("surrogate", None)
    assert numbered("mine.module:search") == ("mine.module:search", None)
    assert numbered("mine.module:search:7") == ("mine.module:search", 7)


def test_half_of_the_images_stay() -> None:
    images = torch.arange(6 * 3 * 32 * 32).reshape(6, 3, 32, 32).to(torch.uint8)
    seen = Half(CropFlip(4))(images, torch.Generator().manual_seed(0))
    assert torch.equal(seen[::2], images[::2])
    assert not torch.equal(seen[1::2], images[1::2])
    assert torch.equal(images, torch.arange(6 * 3 * 32 * 32).reshape(6, 3, 32, 32).to(torch.uint8))


def test_a_table_has_a_cell_for_every_line_and_column() -> None:
    rows = [{"a": 1, "b": "x", "v": 3}, {"a": 2, "b": "y", "v": 4}, {"a": 1, "b": "x", "v": 5}]
    table = pivoted(
        rows, {"A": lambda r: str(r["a"])}, lambda r: str(r["b"]),
        lambda own: "+".join(str(r["v"]) for r in own),
    )  # fmt: skip
    assert table.splitlines() == [
        "| A | x | y |",
        "| --- | --- | --- |",
        "| 1 | 3+5 |  |",
        "| 2 |  | 4 |",
    ]


@pytest.mark.long
def test_workers_find_the_same_and_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--task", "toy", "--evaluations", "6", "--rounds", "1", "--searchers", "random"]
    threads = torch.get_num_threads()
    try:
        assert bench_workers.main(argv) == 0
    finally:
        torch.set_num_threads(threads)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["same_plans"]
    ways = [row["way"] for row in figures["rows"]]
    assert ways == ["1 process", "2 processes", "2 processes, running", "1 process, 2 threads"]
    assert figures["rows"][0]["ratio"] == 1.0
