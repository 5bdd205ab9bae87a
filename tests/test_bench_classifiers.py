"""The bench of classifiers, its batches, and the tables of a finished run."""

from __future__ import annotations

import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from test_report import results

from prune_env import FinetuneSettings, find_groups
from prune_env.errors import ConfigError
from prune_env.experiments import bench_classifiers, publish_run
from prune_env.experiments.bench_classifiers import kept_units, rules_of
from prune_env.experiments.data.texts import load_sentences
from prune_env.experiments.networks import presets
from prune_env.experiments.networks.presets import sentence_project
from prune_env.pipeline.formats import percent
from prune_env.pipeline.project import Project
from prune_env.testing import toy_inputs, toy_model

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip


def write_sentences(folder: Path, count: int = 120) -> None:
    lines = [f"{n % 2} a {'good' if n % 2 else 'bad'} film" for n in range(count)]
    for part, share in (("train", lines), ("dev", lines[:20]), ("test", lines[20:40])):
        (folder / f"x.{part}").write_text("\n".join(share))


def small_project(folder: Path, **options: Any) -> Project:
    """The project of a BERT that tells good films from bad ones."""
    settings = FinetuneSettings(epochs=6, learning_rate=1e-2, optimizer="adamw")
    words = load_sentences(folder, length=8)
    return sentence_project("s", words, SMALL, settings=settings, **options)


@pytest.mark.long
def test_a_classifier_is_pruned_tuned_and_measured_again_from_its_checkpoint(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    write_sentences(tmp_path)
    monkeypatch.setitem(presets.PRESETS, "s", "prune_env.experiments.networks.presets:s")
    monkeypatch.setattr(presets, "s", partial(small_project, tmp_path), raising=False)
    argv = ["--task", "s", "--calibration-samples", "50"]
    argv += ["--tune-seeds", "0,1", "--runs", str(tmp_path), "--out", str(tmp_path / "found")]
    tuning, found = import_module("prune_env.recovery.finetune"), []
    for _ in range(2):
        assert bench_classifiers.main(argv) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        monkeypatch.setattr(tuning, "train_pass", None)  # a second tuning would call it
    rows = found[0]["rows"]
    assert found[1]["rows"] == rows
    names = [f"seed {seed}, {which} epoch" for seed in (0, 1) for which in ("chosen", "last")]
    assert [row["name"] for row in rows] == ["dense", "smallest levels", "pruned", *names]
    assert rows[0]["test"] == 1.0
    assert all(row["val_lost"] == pytest.approx(rows[0]["val"] - row["val"]) for row in rows)
    for chosen, last in (rows[3:5], rows[5:7]):
        assert chosen["val"] == max(chosen["epochs_val"]) == chosen["epochs_val"][chosen["epoch"]]
        assert last["val"] == last["epochs_val"][-1]
    assert [3, 4] in found[0]["groups"].values()
    assert [28, 48] in found[0]["groups"].values()  # the largest level not above 28.8
    assert (tmp_path / "found.md").read_text().count("\n| ") == 2 + len(rows)
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == rows


def test_rules_of_keeping() -> None:
    assert rules_of(["*.a=0.5", "b=c=1"]) == {"*.a": 0.5, "b=c": 1.0}
    for text in ("*.a", "=0.5", "a=0", "a=1.5", "a=x", "a=nan"):
        with pytest.raises(ConfigError, match="glob=fraction"):
            rules_of([text])


def test_kept_units_are_never_above_what_was_asked_for() -> None:
    model = toy_model("chain")
    groups = [group for group in find_groups(model, toy_inputs("chain")) if not group.frozen]
    kept = kept_units(groups, {"*": 0.55})
    for group, units in zip(groups, kept, strict=True):
        assert units <= 0.55 * group.units < min(k for k in (*group.levels, 1e9) if k > units)
    assert kept_units(groups, {}) == [group.units for group in groups]
    with pytest.raises(ConfigError, match="names none"):
        kept_units(groups, {"nowhere": 0.5})
    with pytest.raises(ConfigError, match="smallest level"):
        kept_units(groups, {"*": 1e-6})


def test_publishing_needs_a_finished_run(tmp_path: Path, capsys: Any) -> None:
    assert publish_run.main([str(tmp_path)]) == 2
    assert publish_run.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "finished run directory" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def finished(folder: Path, seed: int = 0, **config: Any) -> dict[str, Any]:
    """A run directory, and what is in its results.json."""
    found = results()
    found["config"] |= {"finetune_epochs": 3, "seed": seed, **config}
    for row in found["rows"]:
        row["accuracy_after"] += seed / 100
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(found))
    return found


def test_published_runs_are_their_tables_their_rows_and_the_means(
    tmp_path: Path, capsys: Any
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    runs = [finished(folder, 4 * seed) for seed, folder in enumerate(folders)]
    out = tmp_path / "out"
    assert publish_run.main([str(folders[0]), str(out)]) == 0
    assert "Means" not in (tmp_path / "out.md").read_text()
    assert publish_run.main([*map(str, folders), str(out)]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    text = (tmp_path / "out.md").read_text()
    assert line == json.loads((tmp_path / "out.json").read_text())
    for run, found in zip(line["runs"], runs, strict=True):
        assert run["rows"] == [
            {k: v for k, v in row.items() if k != "history"} for row in found["rows"]
        ]
        assert run["settings"] == found["config"]
        assert found["command"] in text
    for row in runs[0]["rows"]:
        assert percent(row["accuracy_after"] + 0.02) in text  # the mean of seeds 0 and 4


def test_runs_that_differ_in_more_than_their_seed_are_not_published_together(
    tmp_path: Path, capsys: Any
) -> None:
    finished(tmp_path / "a")
    finished(tmp_path / "b", 1, budget=0.3)
    argv = [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "out")]
    assert publish_run.main(argv) == 2
    assert "differ in budget" in capsys.readouterr().err
    bare = {**results(), "dense": {}}
    (tmp_path / "a" / "results.json").write_text(json.dumps(bare))
    assert publish_run.main([str(tmp_path / "a"), str(tmp_path / "out")]) == 2
    assert "search only" in capsys.readouterr().err
    assert not (tmp_path / "out.md").exists()
