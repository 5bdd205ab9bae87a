"""Laws of fine-tuning: repeatable, resumable, harmless, never worse on val."""

from __future__ import annotations

import copy
import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toys import figures

from prune_env.errors import ConfigError, DataError, ModelError, RunError
from prune_env.recovery import (
    OPTIMIZERS,
    EpochRecord,
    FinetuneSettings,
    evaluate,
    finetune,
    learning_rate_at,
)
from prune_env.recovery.schedule import build_optimizer

SHORT = FinetuneSettings(epochs=4, learning_rate=0.1, seed=3)
CLASSES = 3


def data(seed: int = 0, count: int = 96) -> TensorDataset:
    """Points (N, 5) in three noisy clusters."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, 5, generator=generator)
    return TensorDataset(F.one_hot(labels, 5).float() * 3 + noise, labels)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Train shuffles with torch's global generator, as a user's loader does."""
    return DataLoader(data(0), 16, shuffle=True), DataLoader(data(1), 48)


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)
        return nn.Sequential(*layers, nn.Linear(8, CLASSES))


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_two_runs_agree_to_the_bit_whatever_the_global_generator_holds(optimizer: str) -> None:
    chosen = replace(SHORT, optimizer=optimizer, learning_rate=0.02)
    first = finetune(net(), *loaders(), settings=chosen)
    torch.rand(7)
    second = finetune(net(), *loaders(), settings=chosen)
    other = finetune(net(), *loaders(), settings=replace(chosen, seed=4))
    assert same(first.model, second.model)
    assert first.history == second.history
    assert first.history[1:] != other.history[1:]


def test_the_global_generator_is_put_back() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    finetune(net(), *loaders(), settings=SHORT)
    assert torch.equal(before, torch.random.get_rng_state())


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("last", range(SHORT.epochs + 1))
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, last: int, optimizer: str) -> None:
    chosen = replace(SHORT, optimizer=optimizer)
    file = tmp_path / "tune.pt"
    teacher = net(9)
    whole = finetune(net(), *loaders(), settings=chosen, teacher=teacher)

    def kill(record: EpochRecord) -> None:
        if record.epoch == last:
            raise Killed

    with pytest.raises(Killed):
        finetune(
            net(), *loaders(), settings=chosen, teacher=teacher, checkpoint=file, on_epoch=kill
        )
    seen: list[int] = []
    resumed = finetune(
        net(),
        *loaders(),
        settings=chosen,
        teacher=teacher,
        checkpoint=file,
        on_epoch=lambda record: seen.append(record.epoch),
    )
    assert seen == list(range(last + 1, SHORT.epochs + 1))
    assert same(whole.model, resumed.model)
    assert whole.history == resumed.history
    assert whole.best_epoch == resumed.best_epoch


@pytest.mark.long
def test_sigkill_between_epochs_loses_at_most_one_epoch(tmp_path: Path) -> None:
    file = tmp_path / "tune.pt"
    script = (
        "import os, signal, sys; from pathlib import Path; import test_finetune as t\n"
        "def kill(record):\n"
        "    if record.epoch == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"t.finetune(t.net(), *t.loaders(), settings=t.SHORT, checkpoint=Path({str(file)!r}),"
        " on_epoch=kill)\n"
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    killed = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert [f.name for f in tmp_path.iterdir()] == ["tune.pt"]
    seen: list[int] = []
    resumed = finetune(
        net(), *loaders(), settings=SHORT, checkpoint=file, on_epoch=lambda r: seen.append(r.epoch)
    )
    assert seen == [3, 4]
    assert same(resumed.model, finetune(net(), *loaders(), settings=SHORT).model)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"settings": replace(SHORT, learning_rate=0.3)}, "learning_rate"),
        ({"model": net(1)}, "initial weights"),
        ({"teacher": net(2)}, "teacher"),
        ({"model": nn.Linear(5, CLASSES)}, "shape of"),
        ({"train": DataLoader(data(), 32)}, "steps per epoch"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(
    tmp_path: Path, change: dict[str, Any], names: str
) -> None:
    file = tmp_path / "tune.pt"
    train, val = loaders()
    call: dict[str, Any] = {"model": net(), "train": train, "val": val, "settings": SHORT}
    finetune(**call, checkpoint=file)
    kept = file.read_bytes()
    with pytest.raises(RunError, match=names):
        finetune(**{**call, **change}, checkpoint=file)
    assert file.read_bytes() == kept


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"junk", b"PK\x03\x04half"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tune.pt"
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"tune\.pt"):
        finetune(net(), *loaders(), settings=SHORT, checkpoint=file)


def test_a_foreign_torch_file_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "tune.pt"
    torch.save(net().state_dict(), file)
    with pytest.raises(RunError, match="no fine-tuning checkpoint"):
        finetune(net(), *loaders(), settings=SHORT, checkpoint=file)


def test_a_finished_checkpoint_is_returned_without_training(tmp_path: Path) -> None:
    file = tmp_path / "tune.pt"
    first = finetune(net(), *loaders(), settings=SHORT, checkpoint=file)
    seen: list[int] = []
    again = finetune(
        net(), *loaders(), settings=SHORT, checkpoint=file, on_epoch=lambda r: seen.append(r.epoch)
    )
    assert seen == []
    assert same(first.model, again.model)


@pytest.mark.parametrize("rate", [1e-3, 0.1, 30.0])
def test_the_result_is_never_worse_on_val_than_what_came_in(rate: float) -> None:
    _, val = loaders()
    good = finetune(net(), *loaders(), settings=SHORT).model
    before = evaluate(good, val)
    result = finetune(good, *loaders(), settings=replace(SHORT, learning_rate=rate, epochs=2))
    after = evaluate(result.model, val)
    assert (after.figure, -after.loss) >= (before.figure, -before.loss)
    best = result.history[result.best_epoch]
    assert (after.figure, after.loss) == (best.val_figure, best.val_loss)
    assert best.rank == max(record.rank for record in result.history)


def test_tuning_learns() -> None:
    result = finetune(net(), *loaders(), settings=replace(SHORT, epochs=10))
    assert result.best_epoch > 0
    assert result.history[result.best_epoch].val_figure > 0.7
    assert result.history[0].val_figure < 0.6


def test_the_users_model_and_teacher_stay_as_they_are() -> None:
    model, teacher = net(), net(1)
    model[1].eval()
    teacher.train()
    before = copy.deepcopy(model), copy.deepcopy(teacher)
    result = finetune(model, *loaders(), settings=SHORT, teacher=teacher)
    for now, then in zip((model, teacher), before, strict=True):
        assert same(now, then)
        assert [m.training for m in now.modules()] == [m.training for m in then.modules()]
        assert all(p.grad is None and p.requires_grad for p in now.parameters())
    assert not any(module.training for module in result.model.modules())
    assert not same(result.model, model)


def test_frozen_parameters_do_not_move() -> None:
    model = net()
    model[0].requires_grad_(False)
    tuned = finetune(model, *loaders(), settings=replace(SHORT, epochs=2)).model
    assert torch.equal(tuned[0].weight, model[0].weight)  # type: ignore[index]


def test_distillation_brings_the_student_nearer_to_its_teacher() -> None:
    """The teacher's opinion has nothing to do with the labels, so only it can pass it on."""
    torch.manual_seed(0)
    teacher = nn.Linear(5, CLASSES)
    (points, labels), (others, _) = data(0).tensors, data(2).tensors
    train, val = [(points, labels)] * 4, [(others, teacher(others).argmax(1))]

    def distance(student: nn.Module) -> float:
        with torch.no_grad():
            ours = F.log_softmax(student(others), -1)
            theirs = F.log_softmax(teacher(others), -1)
        return float(F.kl_div(ours, theirs, reduction="batchmean", log_target=True))

    student = nn.Linear(5, CLASSES)
    chosen = FinetuneSettings(epochs=10, learning_rate=0.2, distill_weight=1.0)
    taught = finetune(student, train, val, settings=chosen, teacher=teacher).model
    untaught = finetune(student, train, val, settings=chosen).model
    assert distance(taught) < 0.1 * distance(student)
    assert distance(taught) < 0.1 * distance(untaught)


def test_the_loss_with_a_teacher_is_hintons() -> None:
    """One step of no size: the recorded loss is (1 - w) CE + w T^2 KL, written out here."""
    weight, heat = 0.3, 4.0
    student, teacher = nn.Linear(5, CLASSES), nn.Linear(5, CLASSES)
    x, y = data().tensors
    chosen = FinetuneSettings(
        epochs=1, learning_rate=1e-9, distill_weight=weight, temperature=heat, warmup=0
    )
    result = finetune(student, [(x, y)], [(x, y)], settings=chosen, teacher=teacher)
    with torch.no_grad():
        ours, theirs = student(x), teacher(x)
        p, q = (theirs / heat).softmax(-1), (ours / heat).softmax(-1)
        divergence = (p * (p / q).log()).sum(-1).mean()
        expected = (1 - weight) * F.cross_entropy(ours, y) + weight * heat**2 * divergence
    assert result.history[1].train_loss == pytest.approx(float(expected), rel=1e-4)


@settings(max_examples=100, deadline=None)
@given(steps=st.integers(1, 300), warmup=st.floats(0, 1), peak=st.floats(1e-5, 10))
def test_the_schedule_rises_to_its_peak_once_and_falls(
    steps: int, warmup: float, peak: float
) -> None:
    chosen = FinetuneSettings(learning_rate=peak, warmup=warmup)
    rates = [learning_rate_at(step, steps, chosen) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= peak * (1 + 1e-9) for rate in rates)
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[top:]))
    assert max(rates) == pytest.approx(peak)
    assert learning_rate_at(steps, steps, chosen) in (0.0, pytest.approx(0.0, abs=peak * 1e-9))


def test_the_recorded_learning_rates_follow_the_schedule() -> None:
    train, val = loaders()
    steps = len(train)
    history = finetune(net(), train, val, settings=SHORT).history
    assert [record.epoch for record in history] == list(range(SHORT.epochs + 1))
    assert history[0].train_loss is None
    for record in history[1:]:
        last = learning_rate_at(record.epoch * steps - 1, SHORT.epochs * steps, SHORT)
        assert record.learning_rate == last


class Named(nn.Module):
    """Takes its two inputs by name or place and returns logits in the asked wrapping."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.inner, self.wrap = nn.Linear(5, CLASSES), wrap

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.wrap(self.inner(a + b))


class Streaming:
    """Starts again every epoch but does not know its length."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


@pytest.mark.parametrize("stream", [list, Streaming])
@pytest.mark.parametrize("pack", ["dict", "tuple"])
@pytest.mark.parametrize("wrap", ["tensor", "attribute", "key", "first"])
def test_all_forms_of_inputs_and_outputs_train_alike(wrap: str, pack: str, stream: Any) -> None:
    wraps = {
        "tensor": lambda z: z,
        "attribute": lambda z: SimpleNamespace(logits=z),
        "key": lambda z: {"logits": z},
        "first": lambda z: (z, "more"),
    }
    points, labels = data().tensors
    packs = {
        "dict": {"a": points, "b": points, "labels": labels},
        "tuple": ((points, points), labels),
    }
    torch.manual_seed(0)
    model = Named(wraps[wrap])
    torch.manual_seed(0)
    plain = Named(wraps["tensor"])
    batches = stream([packs[pack]] * 2)
    result = finetune(model, batches, batches, settings=SHORT)
    reference = [((points, points), labels)] * 2
    assert same(result.model, finetune(plain, reference, reference, settings=SHORT).model)


def test_unlabelled_positions_do_not_count() -> None:
    """Logits (B, T, C); dropping the positions marked -100 changes nothing."""
    model = nn.Linear(5, CLASSES)
    points, labels = data(count=90).tensors
    hidden = labels.clone()
    hidden[::4] = -100
    kept = hidden != -100
    chosen = replace(SHORT, warmup=0.0)
    one = [(points.view(45, 2, 5), hidden.view(45, 2))]
    other = [(points[kept], labels[kept])]
    long = finetune(model, one, one, settings=chosen, teacher=nn.Linear(5, CLASSES))
    found = figures(evaluate(model, one))
    expected = figures(evaluate(model, other)) | {"perplexity": found["perplexity"]}
    assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert long.history[0].val_loss == pytest.approx(evaluate(model, other).loss)


def test_accuracy_and_loss_are_means_over_samples_in_eval_mode() -> None:
    model, (points, labels) = net(), data().tensors
    model[1].eval()
    modes = [module.training for module in model.modules()]
    halves = [(points[:10], labels[:10]), (points[10:], labels[10:])]
    quality = evaluate(model, halves)
    assert [module.training for module in model.modules()] == modes
    with torch.no_grad():
        logits = model.eval()(points)
    assert quality.figure == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert quality.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_a_loss_that_explodes_names_epoch_step_and_cure() -> None:
    points, labels = data().tensors
    bad = points.clone()
    bad[3] = math.nan
    train = [(points, labels), (bad, labels)]
    with pytest.raises(ModelError, match=r"epoch 1, step 1.*Lower the learning rate"):
        finetune(net(), train, [(points, labels)], settings=SHORT)


def test_nan_outputs_before_tuning_are_named() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with pytest.raises(ModelError, match="val, epoch 0, step 0"):
        finetune(model, *loaders(), settings=SHORT)


POINTS, LABELS = data().tensors
GOOD = [(POINTS, LABELS)]


@pytest.mark.parametrize(
    ("train", "val", "error", "says"),
    [
        ([], GOOD, DataError, "train is empty"),
        (Streaming([]), GOOD, DataError, "train is empty"),
        (GOOD, [], DataError, "val is empty"),
        (iter(GOOD), GOOD, DataError, "only once"),
        (7, GOOD, DataError, "train is a int"),
        (GOOD, [(POINTS, LABELS + 1)], DataError, "1 to 3, but the model has 3 classes"),
        (GOOD, [(POINTS, LABELS - 1)], DataError, "-1 to 1"),
        ([(POINTS, LABELS + 1)], GOOD, DataError, "train, epoch 1, step 0"),
        (GOOD, [(POINTS, LABELS[:9])], DataError, "96 inputs but targets"),
        (GOOD, [(POINTS, F.one_hot(LABELS).float())], DataError, r"argmax\(-1\)"),
        (GOOD, [(POINTS, LABELS.float())], DataError, "class indices are whole numbers"),
        (GOOD, [POINTS], ConfigError, "'outputs' has no loss to descend"),
        (GOOD, [(POINTS, LABELS, LABELS)], DataError, "a tuple of 3"),
        (GOOD, [(POINTS[:, :4], LABELS)], ModelError, r"\(96, 4\)"),
        (GOOD, [(POINTS, torch.full_like(LABELS, -100))], DataError, "unlabelled"),
    ],
)
def test_bad_data_is_one_clear_error(train: Any, val: Any, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        finetune(net(), train, val, settings=SHORT)


def test_a_teacher_of_another_task_and_a_frozen_model_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"teacher gives outputs \[\(16, 4\)\], the model \[\(16, 3\)\]"
    ):
        finetune(net(), *loaders(), settings=SHORT, teacher=nn.Linear(5, 4))
    with pytest.raises(ModelError, match="requires a gradient"):
        finetune(net().requires_grad_(False), *loaders(), settings=SHORT)


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "sdg"},
        {"epochs": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"warmup": 1.5},
        {"temperature": 0.0},
        {"distill_weight": -0.1},
        {"label_smoothing": 1.0},
        {"momentum": 1.0},
        {"clip_norm": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FinetuneSettings(**wrong)


def test_every_epoch_draws_anew() -> None:
    drawn: list[float] = []

    class Drawing(Streaming):
        def __iter__(self) -> Iterator[Any]:
            drawn.append(float(torch.rand(1)))
            return super().__iter__()

    finetune(net(), Drawing(GOOD), GOOD, settings=SHORT)
    assert len(set(drawn)) == len(drawn) == SHORT.epochs + 1  # one pass of counting


def test_only_matrices_and_kernels_decay() -> None:
    model = net()
    groups = build_optimizer(model, replace(SHORT, weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0)


def test_clipping_bounds_the_step() -> None:
    """Plain SGD at rate 1 moves the weights by the clipped gradient's norm and no more."""
    x, y = data().tensors
    torch.manual_seed(0)
    chosen = FinetuneSettings(
        epochs=1, learning_rate=1.0, momentum=0, weight_decay=0, warmup=0, clip_norm=1e-3
    )
    model = nn.Linear(5, CLASSES)
    result = finetune(model, [(x, y)], [(x, y)], settings=chosen)
    assert result.best_epoch == 1
    pairs = zip(result.model.parameters(), model.parameters(), strict=True)
    moved = sum(float((a - b).detach().pow(2).sum()) for a, b in pairs) ** 0.5
    assert moved == pytest.approx(1e-3, rel=1e-2)
