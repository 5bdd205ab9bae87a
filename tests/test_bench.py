"""The benches of repair and fidelity: JSON last, resumable, and a rank correlation that is one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_env.errors import ConfigError
from prune_env.experiments import bench_fidelity, bench_repair
from prune_env.experiments.benches.fidelity import (
    FidelityConfig,
    append_journal,
    measure,
    read_journal,
)
from prune_env.experiments.report.correlation import interval, ranks, spearman
from prune_env.experiments.report.publishing import publish

DENSE = ["--dense-epochs", "1", "--dense-samples", "300", "--val-samples", "60"]
FIDELITY = [
    *DENSE, "--plans", "4", "--retuned", "2", "--samples", "20,50", "--calibration-samples", "60",
    "--tune-samples", "100", "--tune-epochs", "1", "--resamples", "50",
]  # fmt: skip
PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9)


def brute_spearman(x: list[int], y: list[int]) -> float:
    """The definition: Pearson correlation of mean positions in sorted order."""

    def places(values: list[int]) -> list[float]:
        order = sorted(values)
        at = {v: [i for i, w in enumerate(order, 1) if w == v] for v in values}
        return [sum(at[v]) / len(at[v]) for v in values]

    a, b = places(x), places(y)
    mean = (len(x) + 1) / 2
    cross = sum((p - mean) * (q - mean) for p, q in zip(a, b, strict=True))
    squares = math.prod(sum((p - mean) ** 2 for p in side) for side in (a, b))
    return cross / math.sqrt(squares) if squares else math.nan


@given(PAIRS)
def test_spearman_is_its_definition_with_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = ([pair[side] for pair in pairs] for side in (0, 1))
    found = float(spearman(np.array(x, float), np.array(y, float)))
    assert found == pytest.approx(brute_spearman(x, y), abs=1e-12, nan_ok=True)


@given(PAIRS)
def test_spearman_sees_only_the_order(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array([pair[side] for pair in pairs], float) for side in (0, 1))
    here = spearman(x, y)
    assert np.array_equal(spearman(np.exp(x), y), here, equal_nan=True)
    assert np.allclose(spearman(-x, y), -here, equal_nan=True)


def test_ranks_run_along_the_last_axis() -> None:
    values = np.array([[3.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert ranks(values).tolist() == [[3.5, 1.0, 3.5, 2.0], [2.5] * 4]


def test_interval_of_a_perfect_order_is_a_point_and_of_a_constant_undefined() -> None:
    x = np.arange(12.0)
    assert interval(x, x**3, 200, seed=0) == pytest.approx((1.0, 1.0))
    assert all(math.isnan(end) for end in interval(x, np.ones(12), 200, seed=0))


def test_interval_holds_the_correlation_and_narrows_with_more_plans() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=400)
    y = x + generator.normal(size=400)
    few, many = (interval(x[:n], y[:n], 300, seed=2) for n in (20, 400))
    assert many[0] < float(spearman(x, y)) < many[1]
    assert many[1] - many[0] < few[1] - few[0]


def test_journal_forgets_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    assert read_journal(path) == {}
    append_journal(path, {"name": "a", "tuned": 0.5})
    with path.open("a") as file:
        file.write('{"name": "b", "tu')
    assert list(read_journal(path)) == ["a"]
    append_journal(path, {"name": "b", "tuned": 0.6})
    assert {name: record["tuned"] for name, record in read_journal(path).items()} == {
        "a": 0.5,
        "b": 0.6,
    }


def test_published_figures_are_strict_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(str(tmp_path / "x"), "python y", "# Title\n", {"rows": [{"a": math.nan, "b": 1.5}]})
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == {"command": "python y", "rows": [{"a": None, "b": 1.5}]}
    assert (tmp_path / "x.json").read_text() == last + "\n"
    assert "python y" in (tmp_path / "x.md").read_text()


@pytest.mark.parametrize("samples", ["", "10,x", "0", "-5"])
def test_sample_sizes_must_be_numbers(samples: str) -> None:
    with pytest.raises(ConfigError, match="samples"):
        FidelityConfig(samples=tuple(part for part in samples.split(",") if part))


def figures_of(main: Any, argv: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a bench's last line says."""
    assert main(argv) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


@pytest.mark.long
def test_bench_repair_runs_and_repairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*DENSE, "--calibration-samples", "100", "--runs", str(tmp_path)]
    first = figures_of(bench_repair.main, [*argv, "--out", str(tmp_path / "out")], capsys)
    assert json.loads((tmp_path / "out.json").read_text()) == first
    rows = {(row["order"], row["repair"], row["keep"]): row for row in first["rows"]}
    assert len(rows) == len(first["rows"]) == 30
    ratios = [rows["l1", "none", keep]["macs_ratio"] for keep in (0.75, 0.5, 0.3)]
    assert 1 > ratios[0] > ratios[1] > ratios[2] > 0
    for order in bench_repair.ORDERS:
        repaired, raw = (rows[order, name, 0.75] for name in ("least_squares", "none"))
        assert repaired["kl"] < raw["kl"]

    def retrained(*_: Any) -> None:
        raise AssertionError("the dense network was there")

    monkeypatch.setattr("prune_env.experiments.benches.subjects._train", retrained)
    monkeypatch.setattr(bench_repair, "KEEPS", (0.5,))
    again = figures_of(bench_repair.main, argv, capsys)["rows"]
    assert again == [row for row in first["rows"] if row["keep"] == 0.5]


@pytest.mark.long
def test_bench_fidelity_resumes_to_the_same_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*FIDELITY, "--runs", str(tmp_path)]
    first = figures_of(bench_fidelity.main, argv, capsys)
    assert first["plans"] == 4
    assert len(first["rows"]) == 5 * 3 * 2
    assert {row["samples"] for row in first["rows"]} == {20, 50}
    again = figures_of(bench_fidelity.main, argv, capsys)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}  # nothing is measured again

    (journal,) = tmp_path.glob("fidelity-*/journal.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:2]) + lines[2][:40])  # killed in the third plan
    again = figures_of(bench_fidelity.main, argv, capsys)
    assert _results(again) == _results(first)  # all but the costs, which are measured anew


def _results(figures: dict[str, Any]) -> Any:
    """What does not depend on how fast the machine was."""
    rows = [
        (row["repair"], row["metric"], row["samples"], row["spearman"], row["low"], row["high"])
        for row in figures["rows"]
    ]
    goal = {name: v for name, v in figures["target"].items() if "seconds" not in name}
    return rows, goal


@pytest.mark.long
def test_plans_are_different_and_spend_the_budget(tmp_path: Path) -> None:
    config = FidelityConfig(
        plans=3, retuned=0, samples=("20",), calibration_samples=60, tune_samples=64, tune_epochs=0,
        dense_epochs=0, val_samples=20, budget=0.4, runs=tmp_path,
    )  # fmt: skip
    records = measure(config).values()
    assert len({tuple(record["kept"]) for record in records}) == 3
    assert all(0.3 < record["macs_ratio"] <= 0.4 for record in records)
    assert all(record["tuned"] == record["before"] for record in records)  # no epoch, no change
