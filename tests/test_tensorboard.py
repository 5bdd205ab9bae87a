"""TensorBoard files, read back as TensorBoard does."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from prune_env import Ledger, PruningTask
from prune_env.agents.callbacks import TensorBoardLog, log_dense, log_test
from prune_env.agents.curves import sparsity_tags
from prune_env.agents.figures import front, non_dominated, plans, scatter
from prune_env.errors import RunError
from prune_env.mdp.evaluator import Kept, OfFunction
from prune_env.mdp.rewards import Outcome
from prune_env.quality.evaluators import Hopeless, Metrics
from prune_env.search.searchers import run_search
from prune_env.storage import read_json, write_json
from prune_env.testing import toy_task

N = 12
Draw = Callable[[PruningTask, Sequence[Outcome], Mapping[str, Outcome]], NDArray[np.uint8]]


def read(folder: Path) -> EventAccumulator:
    """Everything in a folder; 0 means that nothing is thinned out."""
    kinds = ("scalars", "images", "tensors")
    return EventAccumulator(str(folder), dict.fromkeys(kinds, 0)).Reload()


def charts(events: EventAccumulator) -> list[str]:
    """Patterns of the layout that TensorBoard shows: the last one."""
    stored = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    layout = layout_pb2.Layout.FromString(stored)
    return [tag for c in layout.category for chart in c.chart for tag in chart.multiline.tag]


def search(folder: Path, name: str = "ppo") -> PruningTask:
    task = toy_task(budget=0.6)
    baselines = {"uniform": run_search(task, "uniform", 1, 0).best}
    log = TensorBoardLog(folder / "log", task, baselines, {"seed": 0, "widths": [1, 2]})
    run_search(task, name, N, 0, folder / "search", on_outcome=log)
    log.close()
    return task


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tb")
    search(folder)
    return folder


@pytest.mark.long
def test_every_evaluation_is_a_step_of_every_curve(logged: Path) -> None:
    task, events = toy_task(budget=0.6), read(logged / "log")
    tags = {
        "quality/accuracy", "quality/kl", "quality/loss", "cost/flops_ratio", "cost/params_ratio",
        "reward/total", "reward/divergence", "best/reward", "best/accuracy", "best/kl",
        *sparsity_tags(task),
    }  # fmt: skip
    assert tags <= set(events.Tags()["scalars"])
    for tag in tags:
        assert [event.step for event in events.Scalars(tag)] == list(range(1, N + 1)), tag
    rewards = [event.value for event in events.Scalars("reward/total")]
    best = [event.value for event in events.Scalars("best/reward")]
    assert best == np.maximum.accumulate(rewards).tolist()


@pytest.mark.long
def test_curves_hold_what_the_search_returned(logged: Path) -> None:
    task, events = toy_task(budget=0.6), read(logged / "log")
    history = run_search(task, "ppo", N, 0, logged / "search").history
    for tag, of_tag in {
        "quality/kl": [o.metrics.divergence for o in history],
        "cost/flops_ratio": [o.flops_ratio for o in history],
        sparsity_tags(task)[2]: [1 - o.kept[2] / 20 for o in history],
    }.items():
        assert [e.value for e in events.Scalars(tag)] == pytest.approx(of_tag, abs=1e-6)


def test_the_losses_of_the_agent_are_in_the_same_log(logged: Path) -> None:
    tags = read(logged / "log").Tags()["scalars"]
    assert {"train/loss", "train/value_loss", "train/entropy_loss"} <= set(tags)


def test_sparsities_are_named_in_layer_order() -> None:
    task = toy_task(length=12)
    tags = sparsity_tags(task)
    assert tags == sorted(tags)
    assert tags[10] == "sparsity/010_layer10"


def test_what_ends_early_goes_on_as_a_line(tmp_path: Path) -> None:
    """To the last evaluation that it might have had; so does the dense network."""
    task = halved(toy_task(budget=0.6))
    log = TensorBoardLog(tmp_path / "uniform", task)
    uniform = run_search(task, "uniform", N, 0, on_outcome=log).best
    log.close()
    log_dense(tmp_path / "dense", task, N)
    for run, tag, value in (
        ("uniform", "best/reward", uniform.reward),
        ("uniform", "quality/kl", uniform.metrics.divergence),
        ("dense", "quality/accuracy", 1.0),
        ("dense", "cost/flops_ratio", 1.0),
    ):
        line = read(tmp_path / run).Scalars(tag)
        assert [event.step for event in line] == [1, N]
        assert [event.value for event in line] == pytest.approx([value, value])


def test_figures_of_test_are_in_the_run_of_their_search_once(tmp_path: Path) -> None:
    task = toy_task(budget=0.6)
    log = TensorBoardLog(tmp_path, task)
    run_search(task, "random", N, 0, on_outcome=log)
    log.close()
    for after in (0.8, 0.9):  # the same command again
        log_test(tmp_path, {"accuracy_after": after, "kl": None}, N)
    events = read(tmp_path)
    (shown,) = events.Scalars("test/accuracy_after")
    assert (shown.step, shown.value) == (N, pytest.approx(0.9))
    assert "test/kl" not in events.Tags()["scalars"]
    assert len(events.Scalars("reward/total")) == N


def test_a_search_is_one_run(logged: Path) -> None:
    assert [path for path in (logged / "log").rglob("*") if path.is_dir()] == []


def test_pictures_texts_hparams_and_layout_are_there(logged: Path) -> None:
    events = read(logged / "log")
    images = events.Tags()["images"]
    names = ("quality_over_cost", "front", "plans")
    assert set(images) == {"search/best_plan", *(f"search/{name}" for name in names)}
    for name in names:
        last = events.Images(f"search/{name}")[-1]
        assert last.step == N
        picture = np.asarray(Image.open(io.BytesIO(last.encoded_image_string)).convert("L"))
        assert picture.std() > 5, "a blank picture"
    tensors = events.Tags()["tensors"]
    texts = [t for t in tensors if t.endswith("text_summary")]
    said = {t: events.Tensors(t)[0].tensor_proto.string_val[0].decode() for t in texts}
    assert "layer3" in said["model/text_summary"]
    assert '"seed": 0' in said["config/text_summary"]
    assert (
        "hparams" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name
    )
    finals = {tag for tag in events.Tags()["scalars"] if tag.startswith("final/")}
    names = ("reward", "accuracy", "kl", "loss", "flops_ratio", "params_ratio")
    assert finals == {f"final/{name}" for name in names}
    assert events.Scalars("final/reward")[-1].value == events.Scalars("best/reward")[-1].value
    patterns = charts(events)
    assert any("sparsity/003" in pattern for pattern in patterns)
    scalars = events.Tags()["scalars"]
    assert all(any(re.match(p, tag) for tag in scalars) for p in patterns), "a chart without data"


@pytest.mark.long
def test_a_resumed_search_is_logged_once(tmp_path: Path) -> None:
    """Killed half-way, then done again into the same folder."""
    search(tmp_path, "random")
    whole = [event.value for event in read(tmp_path / "log").Scalars("reward/total")]
    facts = tmp_path / "search" / "search.json"
    write_json(facts, {**read_json(facts, "search"), "done": None})
    journal = tmp_path / "search" / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[: N // 2]))
    search(tmp_path, "random")
    events = read(tmp_path / "log").Scalars("reward/total")
    assert [event.step for event in events] == list(range(1, N + 1))
    assert [event.value for event in events] == whole
    assert len(list((tmp_path / "log").glob("events.out.*"))) == 1


@pytest.mark.long
def test_a_finished_search_keeps_its_log(tmp_path: Path) -> None:
    search(tmp_path, "random")
    search(tmp_path, "random")  # returns at once: the listener hears nothing
    assert len(read(tmp_path / "log").Scalars("reward/total")) == N


def test_any_searcher_is_logged_even_without_a_baseline(tmp_path: Path) -> None:
    task = toy_task(budget=0.6)
    log = TensorBoardLog(tmp_path, task, every=1)
    run_search(task, "global", 5, 0, on_outcome=log)
    log.close()
    log.close()  # again: nothing happens
    assert len(read(tmp_path).Images("search/best_plan")) == 1


def probing(ledger: Ledger, seed: int) -> None:
    """Everything kept, beyond the budget; a candidate; a glimpse at it; more of both."""
    task = ledger.task
    plans = [task.decode(asked) for asked in ([0.0] * 4, [0.9, 0.1, 0.5, 0.5], [0.4] * 4)]
    ledger.probe([[20] * 4])
    for kept in plans:
        ledger.measure([kept])
        ledger.glimpse([kept], 0.5)


def halved(task: PruningTask) -> PruningTask:
    """A part of the samples flatters: half of the error, half of the charge."""

    class Halved(OfFunction):
        def measure(
            self, kept: Kept, samples: int | None = None, hopeless: Hopeless | None = None
        ) -> Metrics:
            whole = self.function(kept)
            share = 1.0 if samples is None else samples / 10
            return dataclasses.replace(whole, divergence=share * whole.divergence, share=share)

    dense = Metrics(1.0, 0.0, 0.0, 10)
    return dataclasses.replace(task, evaluator=Halved(task.evaluator.measure, dense=dense))


@pytest.mark.long
def test_probes_and_glimpses_are_no_candidates(tmp_path: Path) -> None:
    # At its best where everything is kept, which the budget forbids.
    task = halved(toy_task(target=0.0, budget=0.6))
    log = TensorBoardLog(tmp_path, task)
    ledger = Ledger(task, 6, on_outcome=log)
    ledger.run(probing, 0)
    log.close()
    events = read(tmp_path)
    candidates, probes = [2, 4, 6], [1, 3, 5, 7]
    for tag in ("quality/kl", "reward/total", "cost/flops_ratio", *sparsity_tags(task)):
        assert [event.step for event in events.Scalars(tag)] == candidates, tag
    shares = [(event.step, event.value) for event in events.Scalars("probe/samples_share")]
    assert shares == list(zip(probes, [1.0, 0.5, 0.5, 0.5], strict=True))
    assert [event.step for event in events.Scalars("best/reward")] == [2, 3, 4, 5, 6, 7]
    rewards = [ledger.history[step - 1].reward for step in candidates]
    final = events.Scalars("final/reward")[-1].value
    assert final == pytest.approx(max(rewards)) == pytest.approx(ledger.best.reward)
    assert max(outcome.reward for outcome in ledger.history) > final + 0.1
    assert events.Scalars("search/charged")[-1].value == pytest.approx(ledger.charged) == 5.5
    assert any("probe/kl" in pattern for pattern in charts(events))


def test_a_search_of_probes_alone_is_logged(tmp_path: Path) -> None:
    task = toy_task(budget=0.6)
    log = TensorBoardLog(tmp_path, task, every=1)
    with pytest.raises(RunError, match="no plan"):
        Ledger(task, 1, on_outcome=log).run(probing, 0)
    log.close()
    tags = read(tmp_path).Tags()
    assert "probe/kl" in tags["scalars"]
    assert not [tag for tag in tags["scalars"] if tag.startswith(("best/", "quality/", "final/"))]
    assert not tags["images"]


def test_the_front_is_what_nothing_beats() -> None:
    assert non_dominated([(0.5, 1.0)]) == [(0.5, 1.0)]
    points = [(0.5, 0.2), (0.4, 0.3), (0.5, 0.1), (0.45, 0.3), (0.3, 0.9), (0.6, 0.1)]
    assert non_dominated(points) == [(0.3, 0.9), (0.4, 0.3), (0.5, 0.1)]
    random = np.random.default_rng(0).uniform(size=(60, 2)).tolist()
    found = non_dominated((cost, loss) for cost, loss in random)
    for point in random:
        beaten = any(o != point and o[0] <= point[0] and o[1] <= point[1] for o in random)
        assert beaten != (tuple(point) in found)


@pytest.mark.parametrize("draw", [scatter, front, plans])
def test_pictures_leave_no_global_figure(draw: Draw) -> None:
    from matplotlib import _pylab_helpers

    task = toy_task(budget=0.6)
    history = run_search(task, "random", 5, 0).history
    for part in (history, history[:1]):
        picture = draw(task, part, {"first": history[0]})
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
    assert not _pylab_helpers.Gcf.figs


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file")
    task = toy_task(budget=0.6)
    with pytest.raises(RunError, match="cannot log to"):
        run_search(task, "uniform", 1, 0, on_outcome=TensorBoardLog(tmp_path / "log", task))
