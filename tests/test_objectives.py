"""Objectives: by hand, chosen by what is seen, and end to end as docs/objectives.md shows them."""

from __future__ import annotations

import logging
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from prune_env import PruneEnv, PruningTask, apply, finetune
from prune_env.errors import ConfigError, DataError, ModelError, PruneEnvError
from prune_env.experiments import run
from prune_env.pipeline.project import Project
from prune_env.pipeline.result import Result
from prune_env.quality import OBJECTIVES, Figure, Metrics, Objective
from prune_env.quality.batches import Batch
from prune_env.quality.evaluators import Evaluator, named
from prune_env.recovery import FinetuneSettings, evaluate
from prune_env.recovery.training import Step

PAGE = Path(__file__).parents[1] / "docs" / "objectives.md"
BLOCKS = re.findall(r"^## ([^\n]+)\n.*?^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
SMALL = {"calibration_samples": 16, "reward_samples": 16, "repair_samples": 8}
FAST = FinetuneSettings(epochs=1, learning_rate=0.01)


class Given(nn.Module):
    """Whatever comes in, through a function."""

    def __init__(self, function: Any = lambda x: x) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(model: nn.Module, data: list[Batch], **said: Any) -> tuple[Objective, Metrics]:
    evaluator = Evaluator.of(Given(), data, **said)
    return evaluator.objective, evaluator(model)


# ---- the page


@pytest.mark.parametrize(("title", "block"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_the_page_runs_and_each_block_is_short(title: str, block: str, tmp_path: Path) -> None:
    """Search, apply, tune with the objective's loss, report."""
    assert len([line for line in block.splitlines() if line.strip()]) < 20
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(compile(block, title, "exec"), space)
    if "result" in space:
        reported(space["result"], tmp_path)
        return
    if "tuned" in space:
        history, higher = space["tuned"].history, space["task"].objective.figure.higher
        first, best = history[0].val_figure, max(h.rank for h in history)[0]
        assert best >= (first if higher else -first)
        assert all(math.isfinite(record.val_figure) for record in history)
    info = episode(space["task"])
    assert {"divergence", "loss", space["task"].objective.figure.name} <= set(info)
    assert info["flops_ratio"] <= 1.0


def reported(result: Result, folder: Path) -> None:
    """The network is smaller, its figures are finite, and the page says what they are called."""
    dense, cut, tuned = result.table.rows
    assert all(math.isfinite(row.value) for row in result.table.rows)
    assert tuned.macs_ratio == cut.macs_ratio < dense.macs_ratio == 1.0
    assert result.results["rows"][-1]["evaluations"] == 8
    page = result.report(folder).with_suffix(".md").read_text().replace("\\_", "_")
    assert result.table.figure in page
    assert "nan" not in page.lower().split()


def episode(task: PruningTask) -> dict[str, Any]:
    env = PruneEnv(task)
    env.reset()
    over = False
    while not over:
        *_, over, _, info = env.step(np.array([task.uniform_sparsity], np.float32))
    return info


# ---- by hand


def test_labels_are_measured_as_their_definitions_say() -> None:
    z, y = drawn(40, 5), (drawn(40, 5, seed=1) > 0).float()
    objective, found = measured(
        Given(lambda x: x * -0.5), [Batch(z[:15], y[:15]), Batch(z[15:], y[15:])]
    )
    q, said = -0.5 * z, -0.5 * z > 0
    hits = float((said & (y > 0)).sum())
    expected = 2 * hits / float(said.sum() + y.sum())
    assert (objective.name, objective.figure.name) == ("multilabel", "f1")
    assert found.figure == pytest.approx(expected, rel=1e-6)
    assert found.more["accuracy"] == pytest.approx(float((said == (y > 0)).float().mean()))
    assert found.loss == pytest.approx(float(F.binary_cross_entropy_with_logits(q, y)), rel=1e-5)
    p, s = z.double().sigmoid(), q.double().sigmoid()
    kl = p * (p / s).log() + (1 - p) * ((1 - p) / (1 - s)).log()
    assert found.divergence == pytest.approx(float(kl.mean()), rel=1e-4)


def test_numbers_are_measured_as_their_definitions_say() -> None:
    x, y = drawn(30, 4), drawn(30, 4, seed=1)
    objective, found = measured(
        Given(lambda x: 2 * x), [Batch(x[:10], y[:10]), Batch(x[10:], y[10:])]
    )
    error = float((2 * x - y).square().mean())
    assert (objective.name, objective.figure.higher) == ("regression", False)
    assert found.figure == pytest.approx(math.sqrt(error), rel=1e-5)
    assert found.loss == pytest.approx(error, rel=1e-5)
    assert found.more["r2"] == pytest.approx(1 - error / float(y.var(correction=0)), rel=1e-4)


def test_overlap_is_that_of_all_pixels_together() -> None:
    z, y = drawn(6, 3, 5, 5), (drawn(6, 5, 5, seed=1) > 0).long()
    y[0, 0] = -100
    objective, found = measured(Given(), [Batch(z[:2], y[:2]), Batch(z[2:], y[2:])])
    said, some = z.argmax(1)[y >= 0], y[y >= 0]
    ratios = [
        int(((said == k) & (some == k)).sum()) / int(((said == k) | (some == k)).sum())
        for k in range(3)
    ]
    assert objective.name == "segmentation"
    assert found.figure == pytest.approx(sum(ratios) / 3, rel=1e-6)
    assert found.divergence == 0.0


def test_the_standard_error_of_a_figure_is_that_of_resampling() -> None:
    """The delta method beside the bootstrap, for a root and for a ratio of sums."""
    generator = np.random.default_rng(0)
    x, y = drawn(400, 1), drawn(400, 1, seed=1)
    _, found = measured(Given(), [Batch(x, y)])
    squares = (x - y).square().numpy().ravel()
    draws = [math.sqrt(generator.choice(squares, 400).mean()) for _ in range(2000)]
    assert found.figure_error == pytest.approx(float(np.std(draws)), rel=0.1)


def test_a_sigmoid_and_its_logits_measure_the_same(caplog: pytest.LogCaptureFixture) -> None:
    z, y = drawn(40, 5), (drawn(40, 5, seed=1) > 0).float()
    data = [Batch(z, y)]
    dense = Given(torch.sigmoid)
    sure = Evaluator.of(dense, data)
    assert "ends in a sigmoid" in caplog.text
    plain = Evaluator.of(Given(), data)
    ours = sure(Given(lambda x: (x / 2).sigmoid()))
    theirs = plain(Given(lambda x: x / 2))
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    assert ours.divergence == pytest.approx(theirs.divergence, rel=1e-3)


# ---- chosen by what is seen

CHOICES: list[tuple[str, Any, Any]] = [
    ("classification", drawn(8, 4), torch.arange(8) % 4),
    ("tokens", drawn(8, 6, 4), torch.arange(48).reshape(8, 6) % 4),
    ("segmentation", drawn(8, 4, 3, 5), torch.arange(120).reshape(8, 3, 5) % 4),
    ("binary", drawn(8), (torch.arange(8) % 2)),
    ("binary", drawn(8, 1), (torch.arange(8) % 2).float()),
    ("multilabel", drawn(8, 4), (drawn(8, 4, seed=3) > 0).long()),
    ("multilabel", drawn(8, 4), (drawn(8, 4, seed=3) > 0)),
    ("regression", drawn(8, 3), drawn(8, 3, seed=1)),
    ("regression", drawn(8, 1), drawn(8, seed=1)),
    ("regression", drawn(8, 3, 4, 4), drawn(8, 3, 4, 4, seed=1)),
    ("outputs", drawn(8, 3), None),
]


@pytest.mark.parametrize(("name", "outputs", "targets"), CHOICES)
def test_the_objective_follows_from_the_first_batch(name: str, outputs: Any, targets: Any) -> None:
    evaluator = Evaluator.of(Given(), [Batch(outputs, targets)])
    assert evaluator.objective.name == name
    metrics = evaluator(Given(lambda x: x + 0.1))
    assert metrics.divergence > -1e-6
    assert math.isfinite(metrics.figure)
    figures = named(evaluator.objective, metrics)
    assert {"loss", "divergence", evaluator.objective.figure.name} <= set(figures)


@pytest.mark.parametrize(
    ("outputs", "targets", "says"),
    [
        (drawn(8, 3), F.one_hot(torch.arange(8) % 3), "exactly one 1.*argmax.*'multilabel'"),
        (drawn(8, 3), drawn(8, 3).softmax(1), "sums to one.*argmax.*'regression'"),
        (drawn(8, 1), torch.arange(8), "whole numbers in the shape.*'regression'"),
        (drawn(8, 3), torch.arange(24).reshape(8, 3), "whole numbers.*'regression'"),
        (drawn(8, 3), drawn(8, 5), r"\(8, 3\).*\(8, 5\).*'multilabel'.*objective="),
        (drawn(8, 3), [{"boxes": drawn(2, 4)}] * 8, "what they mean has to be said.*objective="),
    ],
)
def test_what_would_be_a_guess_is_asked_for(outputs: Any, targets: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Evaluator.of(Given(), [Batch(outputs, targets)])


@pytest.mark.parametrize("wish", ["accuracy", 3, None])
def test_an_objective_that_there_is_not_is_refused(wish: Any) -> None:
    with pytest.raises(ConfigError, match="classification, tokens"):
        PruningTask.from_model(nn.Linear(2, 2), [], objective=wish)


def test_any_tree_of_outputs_is_compared() -> None:
    def tree(x: Tensor) -> Any:
        return {"a": x, "more": (x * 2, [x.sum()]), "ids": x.argmax(1), "name": "n"}

    data = [Batch(drawn(8, 3)), Batch(drawn(4, 3, seed=1))]
    evaluator = Evaluator.of(Given(tree), data)
    assert evaluator(Given(tree)).divergence == 0.0
    further = evaluator(Given(lambda x: tree(1.1 * x)))
    assert further.divergence == pytest.approx(0.01, rel=1e-4)
    assert evaluator.samples == 12
    with pytest.raises(DataError, match="cannot be compared"):
        evaluator(Given(lambda x: x))


# ---- the user's own


def test_a_scalar_loss_and_no_figure_are_enough() -> None:
    objective = Objective("mine", loss=nn.L1Loss())
    x, y = drawn(8, 3), drawn(8, 3, seed=1)
    _, found = measured(Given(), [Batch(x, y)], objective=objective)
    assert found.figure == found.loss == pytest.approx(float((x - y).abs().mean()), rel=1e-6)
    assert objective.figure == Figure("loss", objective.figure.of, higher=False)


@pytest.mark.parametrize("criterion", ["l1", "taylor"])
@pytest.mark.parametrize("samples", [(5, 9), (24, 24), (500, 1000)])
def test_an_objective_of_whole_batches_never_sees_another(
    criterion: str, samples: tuple[int, int]
) -> None:
    sizes = set()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        sizes.add(len(outputs))
        return F.cross_entropy(outputs @ outputs.T, targets, reduction="none")

    data = [(x, torch.arange(8)) for x in drawn(5, 8, 6)]
    mine = Objective("mine", loss, batchwise=True)
    counts = {"calibration_samples": samples[0], "reward_samples": samples[1]}
    task = PruningTask.from_model(net(), data, objective=mine, criterion=criterion, **counts)
    assert task.outcome(task.decode([0.0])).metrics.samples % 8 == 0
    assert sizes == {8}
    with pytest.raises(DataError, match=r"has 1 batch\(es\), and the objective is of whole ones"):
        PruningTask.from_model(net(), data[:1], objective=mine, **counts)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def pairs() -> list[tuple[Tensor, Tensor]]:
    return [(drawn(8, 6, seed=s), torch.arange(8) % 3) for s in range(6)]


@pytest.mark.parametrize(
    ("value", "says"),
    [(math.nan, "gives nan"), (None, "your own evaluation, fails: TypeError")],
)
def test_an_evaluation_that_fails_names_itself_and_the_plan(value: Any, says: str) -> None:
    dense = net()
    calls = []

    def mine(model: nn.Module) -> Any:
        calls.append(model)
        return 0.9 if len(calls) == 1 else value

    with pytest.raises(ModelError, match=f"mine.*{says}"):
        PruningTask.from_model(dense, pairs(), objective=mine, budget=0.6, **SMALL)
    counted = iter([0.9, 0.9, value])
    objective = Objective("mine", evaluate=lambda model: next(counted))
    task = PruningTask.from_model(dense, pairs(), objective=objective, budget=0.6, **SMALL)
    with pytest.raises(ModelError, match=rf"mine.*{says}.*The plan keeps \[\d+\] units"):
        task.outcome(task.decode([0.0]))


@pytest.mark.parametrize("higher", [True, False])
def test_a_search_is_paid_for_the_users_figure(higher: bool) -> None:
    def size(model: nn.Module) -> float:
        return float(sum(p.abs().sum() for p in model.parameters()))

    objective = Objective("size", evaluate=size, higher=higher)
    task = PruningTask.from_model(net(), pairs(), objective=objective, budget=0.6, **SMALL)
    kept = task.decode([0.0])
    outcome = task.outcome(kept)
    assert task.dense is not None
    fell = (task.dense.figure - outcome.metrics.figure) * (1 if higher else -1)
    assert outcome.reward == pytest.approx(-fell)
    paid = PruningTask.from_model(
        net(), pairs(), objective=objective, budget=0.6, reward="size", **SMALL
    ).outcome(kept)
    assert paid.reward == pytest.approx(outcome.metrics.figure * (1 if higher else -1))


def test_gradients_need_a_loss() -> None:
    with pytest.raises(ConfigError, match=r"criterion asks for gradients.*'outputs' has none"):
        PruningTask.from_model(
            net(), [x for x, _ in pairs()], criterion="taylor", budget=0.6, **SMALL
        )


@pytest.mark.parametrize("name", ["multilabel", "regression"])
def test_gradients_are_those_of_the_objectives_loss(name: str) -> None:
    from prune_env.calibration.gradients import loss_gradients

    model, objective = net(), OBJECTIVES[name]
    x, y = drawn(24, 6), (drawn(24, 3, seed=1) > 0).float()
    found = loss_gradients(model, [Batch(x[:16], y[:16]), Batch(x[16:], y[16:])], objective)
    loss = {"multilabel": nn.BCEWithLogitsLoss(), "regression": nn.MSELoss()}[name]
    loss(model(x), y).backward()
    for key, parameter in model.named_parameters():
        assert torch.allclose(found[key], parameter.grad, atol=1e-6)  # type: ignore[arg-type]


# ---- tuning


def test_tuning_takes_the_users_loss_optimizer_scheduler_and_listener() -> None:
    steps: list[Step] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=0.1)

    tuned = finetune(
        net(), pairs(), pairs(), settings=FinetuneSettings(epochs=2), loss=loss,
        optimizer=lambda model: torch.optim.Adam(model.parameters(), 0.01),
        scheduler=lambda optimizer, count: torch.optim.lr_scheduler.LinearLR(
            optimizer, 1.0, 0.0, count
        ),
        on_step=steps.append,
    )  # fmt: skip
    assert [(s.epoch, s.step) for s in steps] == [(e, s) for e in (1, 2) for s in range(6)]
    assert steps[0].learning_rate == pytest.approx(0.01)
    assert [s.learning_rate for s in steps] == pytest.approx(
        [0.01 * (1 - k / 12) for k in range(12)]
    )
    assert tuned.history[-1].train_loss is not None
    by_hand = net().train()
    optimizer = torch.optim.Adam(by_hand.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 12)
    for x, y in pairs() * 2:
        optimizer.zero_grad()
        loss(by_hand(x), y).backward()
        optimizer.step()
        schedule.step()
    for name, value in by_hand.state_dict().items():
        assert torch.allclose(tuned.last[name], value, atol=1e-6)


def test_a_tuning_of_the_users_own_resumes(tmp_path: Path) -> None:
    def tuned(path: Path | None, epochs: int = 3, stop: int = 99) -> Any:
        def tell(record: Any) -> None:
            if record.epoch == stop:
                raise KeyboardInterrupt

        return finetune(
            net(), pairs(), pairs(), settings=FinetuneSettings(epochs=epochs), checkpoint=path,
            optimizer=lambda model: torch.optim.Adam(model.parameters(), 0.01),
            scheduler=lambda optimizer, count: torch.optim.lr_scheduler.OneCycleLR(
                optimizer, 0.05, count + 1
            ),
            on_epoch=tell,
        )  # fmt: skip

    whole = tuned(None)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "tune.pt", stop=1)
    resumed = tuned(tmp_path / "tune.pt")
    assert resumed.history == whole.history
    for name, value in whole.last.items():
        assert torch.equal(resumed.last[name], value)


def test_what_cannot_be_descended_is_refused() -> None:
    inputs = [x for x, _ in pairs()]
    with pytest.raises(ConfigError, match=r"'outputs' has no loss.*teacher="):
        finetune(net(), inputs, inputs, settings=FAST)
    with pytest.raises(ConfigError, match=r"label_smoothing is 0\.1.*regression"):
        finetune(
            net(), [(x, drawn(8, 3)) for x in inputs], [(x, drawn(8, 3)) for x in inputs],
            settings=FinetuneSettings(epochs=1, label_smoothing=0.1),
        )  # fmt: skip


# ---- data as people have them


def test_every_form_of_data_gives_the_same_task() -> None:
    x, y = torch.cat([a for a, _ in pairs()]), torch.cat([b for _, b in pairs()])
    forms: dict[str, Any] = {
        "arrays": (x.numpy(), y.numpy()),
        "doubles": (x.numpy().astype(np.float64), y.numpy()),
        "tensors": (x, y),
        "dataset": TensorDataset(x, y),
        "batches of arrays": [(a.numpy(), b.numpy()) for a, b in pairs()],
    }
    expected = PruningTask.from_model(net(), pairs(), budget=0.6, **SMALL)
    kept = expected.decode([0.0])
    for name, data in forms.items():
        task = PruningTask.from_model(net(), data, budget=0.6, **SMALL)
        assert task.outcome(kept).metrics == expected.outcome(kept).metrics, name
        small = apply(task.plan(kept), net(), data)
        assert torch.equal(small(x), expected.network(kept)(x)), name
    tuned = finetune(expected.network(kept), forms["dataset"], forms["arrays"], settings=FAST)
    assert tuned.history[-1].train_loss is not None


def test_dicts_of_any_keys_are_read_by_a_function() -> None:
    named = [{"pixels": x, "klass": y, "path": "a"} for x, y in pairs()]

    def batch(item: dict[str, Any]) -> Any:
        return item["pixels"], item["klass"]

    task = PruningTask.from_model(net(), named, batch=batch, budget=0.6, **SMALL)
    expected = PruningTask.from_model(net(), pairs(), budget=0.6, **SMALL)
    kept = task.decode([0.0])
    assert task.outcome(kept).metrics == expected.outcome(kept).metrics
    same = apply(task.plan(kept), net(), named, batch=batch)
    assert torch.equal(same(pairs()[0][0]), task.network(kept)(pairs()[0][0]))
    tuned = finetune(same, named, named, settings=FAST, batch=batch)
    assert tuned.history == finetune(same, pairs(), pairs(), settings=FAST).history
    found = evaluate(same, named, batch=batch)
    assert found.figure == tuned.history[0].val_figure
    with pytest.raises(DataError, match=r"batch= fails on what the loader gave \(dict\): KeyError"):
        PruningTask.from_model(net(), named, batch=lambda item: item["image"], **SMALL)


class Scaled(nn.Module):
    """Takes images as they are stored."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x.float() / 255)
        return found


def test_images_in_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(48) % 3
    task = PruningTask.from_model(Scaled().eval(), (images, labels), budget=0.6, **SMALL)
    assert len(task.groups) == 2
    kept = task.decode([0.0] * 2)
    tuned = finetune(task.network(kept), (images, labels), (images, labels), settings=FAST)
    assert tuned.history[-1].train_loss is not None
    with pytest.raises(PruneEnvError, match=r"uint8.*batch=lambda"):
        PruningTask.from_model(Scaled().net.eval(), (images, labels), budget=0.6, **SMALL)


def test_arrays_of_unequal_length_are_refused() -> None:
    with pytest.raises(DataError, match="48 inputs and 40 targets"):
        PruningTask.from_model(net(), (drawn(48, 6), torch.zeros(40)), **SMALL)


def test_what_was_chosen_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Evaluator.of(Given(), [Batch(drawn(8, 3))])
    assert "objective='outputs'" in caplog.text


# ---- from the command to the report


def project(kind: str, **options: Any) -> Project:
    made = {
        "segmentation": (segmenter, [(x, (x[:, 0] > 0).long()) for x in drawn(8, 8, 3, 6, 6)]),
        "regression": (net, [(x, x[:, :3] ** 2) for x in drawn(8, 8, 6)]),
        "outputs": (net, list(drawn(8, 8, 6))),
    }
    factory, data = made[kind]
    dense = factory()
    task = PruningTask.from_model(dense, data, name=kind, **options)
    return Project(kind, dense, task, data[:6], data[6:7], data[7:], factory)


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "figure", "apart"),
    [
        ("segmentation", "miou", "KL, nats"),
        ("regression", "rmse", "divergence"),
        ("outputs", "output_error", "divergence"),
    ],
)
def test_a_run_reports_what_is_measured(
    kind: str, figure: str, apart: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(f"{__name__}.chosen", partial(project, kind), raising=False)
    argv = [
        "--task", f"{__name__}:chosen", "--searcher", "evolution", "--baselines", "uniform",
        "--evaluations", "3", "--finetune-epochs", "1", "--reward-samples", "32",
        "--calibration-samples", "24", "--runs", str(tmp_path), "--name", "it",
    ]  # fmt: skip
    assert run.main(argv) == 0
    shown = capsys.readouterr().out
    page = (tmp_path / "it" / "report.md").read_text().replace("\\_", "_")
    for text in (shown, page):
        assert f"{figure} before" in text
        assert "accuracy" not in text.replace("accuracy, ", "")
    assert f"{apart}, to dense" in page
    assert "nan" not in page
    tags = {path.parent.name for path in (tmp_path / "it").rglob("events.out.tfevents.*")}
    assert "evolution" in tags
