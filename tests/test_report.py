"""Laws of the report: it says what the results say, survives any of them, and claims no more."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_env import version
from prune_env.experiments.report.__main__ import main
from prune_env.experiments.report.figures import best_so_far
from prune_env.experiments.report.findings import leaders, standard_error, verdict, within_noise
from prune_env.experiments.report.page import Cell, Table, markdown_escape
from prune_env.experiments.report.publishing import write_csv
from prune_env.experiments.report.report import format_table, write_report
from prune_env.experiments.report.series import STYLES, style_of
from prune_env.pipeline.formats import MISSING, duration, percent, scaled

Results = dict[str, Any]
NAMES = ("uniform", "global", "random", "ppo")


def row(name: str, number: int, groups: int) -> Results:
    """A plausible row; every number in it differs from every other row's."""
    evaluations = 1 if name in ("uniform", "global") else 6
    kept = {f"layers.{g}.conv": [4 + (g + number) % 8, 16] for g in range(groups)}
    return {
        "name": name, "kind": "agent" if name == "ppo" else "baseline", "seed": 0,
        "evaluations": evaluations, "search_seconds": 1.5 + number, "reward": -0.3 + 0.01 * number,
        "kl": 0.35 - 0.01 * number, "accuracy_reward": 0.8 + 0.01 * number,
        "accuracy_before": 0.7001 + 0.02 * number, "accuracy_after": 0.8103 + 0.002 * number,
        "macs": 20.4e6 - 1e5 * number, "params": 131_072 - 100 * number,
        "macs_ratio": 0.499 - 0.001 * number, "params_ratio": 0.48, "file_bytes": 540_123 - number,
        "latency_ms": {"median": 11.8 + number / 10, "low": 11.5 + number / 10, "high": 12.4},
        "sparsity": {name: 1 - k / n for name, (k, n) in kept.items()}, "kept": kept,
        "history": [
            {"reward": -0.3 - 0.1 * t, "accuracy": 0.8, "kl": 0.4, "flops_ratio": 0.49}
            for t in range(evaluations)
        ],
    }  # fmt: skip


def results(groups: int = 5, names: tuple[str, ...] = NAMES) -> Results:
    live = [
        {"name": f"layers.{g}.conv", "units": 16, "macs_share": 0.9 / groups, "frozen": ""}
        for g in range(groups)
    ]
    head = {"name": "head", "units": 10, "macs_share": 0.0, "frozen": "tied to the output"}
    return {
        "title": "net on data",
        "command": "python -m experiments.run --model net",
        "config": {"model": "net", "ignore": [], "budget": 0.5},
        "machine": {"python": "3.11", "torch": "2", "threads": 1, "cpu": "x", "date": "today"},
        "dense": {
            "accuracy_test": 0.853, "accuracy_val": 0.86, "macs": 40.8e6, "params": 269_722,
            "file_bytes": 1_100_000, "latency_ms": {"median": 21.3, "low": 20.9, "high": 22.0},
            "test_samples": 10_000,
        },
        "rows": [row(name, number, groups) for number, name in enumerate(names)],
        "groups": [*live, head],
        "budget": 0.5,
        "on": "macs",
        "note": "a note",
    }  # fmt: skip


class Checker(HTMLParser):
    """Collects text and addresses, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(content: Results, folder: Path) -> tuple[Checker, str]:
    """The page's parsed HTML and its Markdown."""
    page = write_report(content, folder)
    checker = Checker()
    checker.feed(page.read_text(encoding="utf-8"))
    checker.close()
    assert not checker.open
    return checker, (folder / "report.md").read_text(encoding="utf-8")


def test_both_pages_carry_every_figure(tmp_path: Path) -> None:
    page, markdown = written(results(), tmp_path)
    for text in (page.text, markdown.replace("\\", "")):
        for entry in results()["rows"]:
            for key in ("accuracy_before", "accuracy_after", "accuracy_reward"):
                assert percent(entry[key]) in text
            assert scaled(entry["macs"]) in text
            assert all(group in text for group in entry["kept"])
        for said in ("tied to the output", "a note", "net on data", "experiments.run"):
            assert said in text


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page, _ = written(results(), tmp_path)
    assert len(page.addresses) == 3
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)


def test_markdown_links_its_figures(tmp_path: Path) -> None:
    _, markdown = written(results(), tmp_path)
    files = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert files
    assert all((tmp_path / file).read_text().startswith("<?xml") for file in files)


@pytest.mark.long
def test_the_report_is_a_pure_function(tmp_path: Path) -> None:
    content = results()
    before = copy.deepcopy(content)
    one = write_report(content, tmp_path / "one").read_bytes()
    assert one == write_report(content, tmp_path / "two").read_bytes()
    assert content == before


def spoiled(**changes: Any) -> Results:
    """Results whose rows all have `changes`."""
    content = results()
    for entry in content["rows"]:
        entry.update(changes)
    return content


NAN = math.nan
UNTESTED = {"accuracy_before": None, "accuracy_after": None, "file_bytes": None, "latency_ms": None}
BARE = {**spoiled(**UNTESTED), "dense": {}}
NAN_HISTORY = [{"reward": NAN, "accuracy": NAN, "kl": NAN, "flops_ratio": NAN}] * 3
DEGENERATE: dict[str, Results] = {
    "untuned": spoiled(accuracy_after=None),
    "bare task": BARE,
    "nothing finite": spoiled(
        reward=NAN, kl=math.inf, accuracy_reward=NAN, accuracy_before=NAN, accuracy_after=NAN,
        macs=NAN, macs_ratio=NAN, latency_ms={"median": NAN, "low": NAN, "high": NAN},
        history=NAN_HISTORY,
    ),
    "no history": spoiled(history=[]),
    "one row": results(names=("ppo",)),
    "no row": results(names=()),
    "no agent": results(names=("uniform", "random")),
    "unknown searchers": results(names=("_hidden", "a" * 200, "a" * 200 + "b")),
    "many groups": results(groups=200),
    "no frozen group": {**results(), "groups": results()["groups"][:-1]},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", DEGENERATE)
def test_any_results_make_a_report(name: str, tmp_path: Path) -> None:
    page, markdown = written(DEGENERATE[name], tmp_path)
    assert {"h1", "table"} <= page.tags
    assert markdown.startswith("# ")
    assert format_table(DEGENERATE[name])


def test_what_is_missing_has_no_column(tmp_path: Path) -> None:
    head = format_table(BARE).splitlines()[0]
    assert "accuracy" not in head
    assert "latency" not in head
    assert "dense" not in format_table(BARE)


NASTY = "<script>alert('&amp;')</script>|$x_1$*`\n[a](b)"


def test_names_are_shown_literally(tmp_path: Path) -> None:
    content = results(names=(NASTY, "ppo"))
    content["title"] = content["command"] = content["note"] = NASTY
    content["config"] = {NASTY: NASTY}
    content["groups"][0]["name"] = NASTY
    content["groups"][-1]["frozen"] = NASTY
    for entry in content["rows"]:
        entry["kept"][NASTY] = [8, 16]
        entry["sparsity"][NASTY] = 0.5
    page, markdown = written(content, tmp_path)
    assert "script" not in page.tags
    assert NASTY in page.text
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert "<" not in re.sub(r"\\.", "", "".join(tables))


@given(st.text(max_size=30))
def test_a_cell_stays_one_cell_in_markdown(text: str) -> None:
    line = Table(("a", "b"), ((Cell(text), Cell("1")),)).markdown().splitlines()
    assert len(line) == 3
    assert len(re.sub(r"\\.", "", line[-1]).split("|")) == 4
    assert re.sub(r"\\(.)", r"\1", markdown_escape(text)) == " ".join(text.split())


def test_the_terminal_table_is_aligned() -> None:
    lines = format_table(results()).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines] == ["plan", "dense", *NAMES]


def marked(content: Results, column: str) -> set[str]:
    """Names of the rows whose value carries the mark of the best."""
    lines = format_table(content).splitlines()
    cells = [re.split(r"\s{2,}", line) for line in lines]
    at = cells[0].index(column)
    return {cell[0] for cell in cells[1:] if "*" in cell[at]}


def test_only_the_best_is_marked() -> None:
    assert marked(results(), "accuracy before") == {"ppo"}
    assert marked(results(), "MACs") == {"ppo"}
    assert marked(results(), "latency, ms") == set()  # the quartiles overlap
    apart = results()
    apart["rows"][2]["latency_ms"] = {"median": 5.0, "low": 4.9, "high": 5.1}
    assert marked(apart, "latency, ms") == {"random"}


def test_no_winner_within_noise() -> None:
    """0.2 points on 10,000 images are noise, and on a million they are not."""
    content = results()
    assert marked(content, "accuracy after") == set()
    assert "within noise" in verdict(content)
    content["dense"]["test_samples"] = 1_000_000
    assert marked(content, "accuracy after") == {"ppo"}
    assert "ahead of it" in verdict(content)
    content["rows"][0]["accuracy_after"] = 0.9
    assert "behind it" in verdict(content)
    del content["dense"]["test_samples"]
    assert marked(content, "accuracy after") == set()
    assert "not known" in verdict(content)


accuracies = st.floats(0, 1)


@given(accuracies, accuracies, st.integers(1, 10**6))
def test_noise_is_symmetric_and_shrinks_with_samples(a: float, b: float, samples: int) -> None:
    assert within_noise(a, b, samples) == within_noise(b, a, samples)
    assert within_noise(a, a, samples)
    assert within_noise(a, b, samples) or not within_noise(a, b, 4 * samples)
    assert standard_error(a, samples) == pytest.approx(2 * standard_error(a, 4 * samples))


@given(st.lists(st.none() | st.floats(), max_size=6), st.sampled_from([1, -1]))
def test_leaders_are_the_best_or_nobody(values: list[float | None], sign: int) -> None:
    found = leaders(values, sign)
    finite = [sign * v for v in values if v is not None and math.isfinite(v)]
    assert len(found) < max(1, len(finite))
    assert all(sign * values[k] == pytest.approx(max(finite)) for k in found)  # type: ignore[operator]


@given(st.lists(st.floats(-5, 5) | st.just(math.nan), min_size=1, max_size=20))
def test_best_so_far_never_falls(values: list[float]) -> None:
    import numpy as np

    best = best_so_far(np.array(values))
    known = best[~np.isnan(best)]
    assert (np.diff(known) >= 0).all()
    assert len(known) == 0 or known[-1] == np.nanmax(values)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, MISSING), (math.nan, "nan"), (0, "0"), (999, "999"), (1000, "1.000 k"),
        (40_813_184, "40.81 M"), (-1500, "-1.500 k"), (1e30, "1000000000000000 P"),
    ],
)  # fmt: skip
def test_scaled_numbers(value: float | None, text: str) -> None:
    assert scaled(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.421, "0.42 s"), (59.4, "59 s"), (200, "3 min 20 s"), (5000, "1 h 23 min"), (None, MISSING)],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_colours_are_fixed_and_distinct() -> None:
    assert len({style.colour for style in STYLES.values()}) == len(STYLES)
    assert style_of("mine") == style_of("mine")


def test_the_command_writes_the_pages_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results()))
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").exists()
    assert format_table(results()) in capsys.readouterr().out
    assert main([str(tmp_path / "none")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_row_of_the_csv_is_a_plan(tmp_path: Path) -> None:
    rows = [{"name": "a, b", "kl": 0.5, "history": [1]}, {"name": "c", "macs": None}]
    with write_csv(tmp_path / "report.csv", rows).open(newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [
        {"name": "a, b", "kl": "0.5", "macs": ""},
        {"name": "c", "kl": "", "macs": ""},
    ]


def test_a_page_says_the_commit_it_is_of(tmp_path: Path) -> None:
    assert version.version().startswith("0.")
    git = tmp_path / ".git"
    assert version._commit(git) == ""
    (git / "refs").mkdir(parents=True)
    (git / "HEAD").write_text("0123456789\n")
    assert version._commit(git) == "0123456789"
    (git / "HEAD").write_text("ref: refs/main\n")
    (git / "packed-refs").write_text("# pack\nabcdef0 refs/main\n")
    assert version._commit(git) == "abcdef0"
    (git / "refs" / "main").write_text("fedcba9\n")
    assert version._commit(git) == "fedcba9"
