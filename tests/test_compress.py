"""One call from a trained network to a smaller one: what it says is what is in the hand."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prune_env
from prune_env.errors import BudgetError, ConfigError, ModelError, PruneEnvError
from prune_env.mdp.task import PruningTask
from prune_env.pipeline import stages
from prune_env.pipeline.result import Result
from prune_env.plan.cut import compact
from prune_env.progress import bars, lines, progress, showing
from prune_env.recovery import FinetuneSettings, evaluate
from prune_env.search.ledger import Ledger
from prune_env.testing import toy_inputs, toy_model

QUICK: dict[str, Any] = {
    "searcher": "uniform", "evaluations": 4, "epochs": 1, "budget": 0.6, "precision": "float32",
    "calibration_samples": 16, "reward_samples": 16, "repair_samples": 16,
}  # fmt: skip


def model_of_several_minds() -> nn.Module:
    """The toy, with logits of mean 0 and spread 1, so that it sees all classes."""
    model, images = toy_model("chain"), toy_inputs("chain", 9, 64)
    assert isinstance(images, Tensor)
    with torch.no_grad():
        logits = model(images)
        last = model.get_submodule("head")
        last.weight /= logits.std(0)[:, None]
        last.bias.copy_((last.bias - logits.mean(0)) / logits.std(0))
    return model


MODEL = model_of_several_minds()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def labelled(seed: int, samples: int = 32) -> tuple[Tensor, Tensor]:
    """Images with the class that the dense network sees in them, one in four another."""
    images = toy_inputs("chain", seed, samples)
    assert isinstance(images, Tensor)
    with torch.no_grad():
        classes = MODEL(images).argmax(1)
    classes[::4] = (classes[::4] + 1) % 5
    return images, classes


TRAIN, VAL, TEST = labelled(0), labelled(1, 16), labelled(2, 24)


def compressed(*data: Any, **options: Any) -> Result:
    return prune_env.compress(MODEL, *(data or (TRAIN, VAL, TEST)), **{**QUICK, **options})


def bits(network: nn.Module) -> list[Tensor]:
    return list(network.state_dict().values())


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(bits(one), bits(other), strict=True))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("compressed")
    return folder, compressed(folder=folder)


def test_what_the_table_says_is_what_is_in_the_hand(kept: tuple[Path, Result]) -> None:
    result = kept[1]
    dense, cut, tuned = result.table.rows
    assert [row.network for row in result.table.rows] == ["dense", "cut", "tuned"]
    assert tuned.value == evaluate(result.network, TEST).figure
    assert dense.value == evaluate(MODEL, TEST).figure == 0.75
    assert result.table.samples == 24
    assert result.table.measured_on == "test"
    error = (0.75 * 0.25 / 24) ** 0.5
    assert dense.high - dense.value == pytest.approx(1.96 * error)
    assert cut.params == tuned.params == sum(p.numel() for p in result.network.parameters())
    assert tuned.params_ratio == tuned.params / sum(p.numel() for p in MODEL.parameters())
    assert tuned.macs_ratio <= 0.6
    for text in ("accuracy on test", "95 % interval", "dense", "75.00 %", "tuned"):
        assert text in str(result.table)
    cut_again = compact(MODEL, result.plan)
    assert [t.shape for t in bits(cut_again)] == [t.shape for t in bits(result.network)]


def test_a_folder_goes_on_and_changes_nothing(
    kept: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result = kept
    assert same(result.network, compressed().network)  # without a folder

    def again(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something was measured or tuned again")

    monkeypatch.setattr(Ledger, "run", again)
    monkeypatch.setattr(stages, "finetune", again)
    monkeypatch.setattr(stages, "measure_latency", again)
    found = compressed(folder=folder)
    assert same(found.network, result.network)
    assert found.table == result.table
    with pytest.raises(PruneEnvError, match="budget"):
        compressed(folder=folder, budget=0.7)


def test_it_is_kept_and_written_for_others(kept: tuple[Path, Result], tmp_path: Path) -> None:
    result = kept[1]
    assert same(
        prune_env.load(result.save(tmp_path / "net"), lambda: toy_model("chain")), result.network
    )
    page = result.report(tmp_path / "page")
    said = (page.parent / "report.md").read_text()
    shown = result.table.yardstick.show
    assert page.name == "report.html"
    assert all(shown(row.value) in said for row in result.table.rows)

    program = torch.export.load(result.export(tmp_path / "net.pt2")).module()
    assert torch.allclose(program(TEST[0]), result.network(TEST[0]), atol=1e-6)
    with pytest.raises(ConfigError, match=r"\.onnx, \.pt2"):
        result.export(tmp_path / "net.onx")
    with pytest.raises(ModelError):
        result.export(tmp_path / "folder")  # no config of the transformers library


def test_the_best_of_several_on_val_is_tuned() -> None:
    result = compressed(searcher=[hopeless, "uniform", "random"], epochs=0)
    task = PruningTask.from_model(
        MODEL, TRAIN, **{k: v for k, v in QUICK.items() if k not in stages_only}
    )
    rows = {row["name"]: row for row in result.results["rows"]}
    figures = {}
    for name, row in rows.items():
        kept_units = [row["kept"][group.name][0] for group in task.groups]
        figures[name] = evaluate(task.network(kept_units), VAL).figure
    assert result.chosen != "hopeless"
    assert result.chosen == max(figures, key=lambda name: figures[name])
    assert [row.network for row in result.table.rows] == ["dense", "cut"]
    untuned = [row for name, row in rows.items() if name != result.chosen]
    assert all(row["accuracy_before"] is None for row in untuned)
    assert rows[result.chosen]["accuracy_before"] == evaluate(result.network, TEST).figure


stages_only = {"searcher", "evaluations", "epochs"}


def hopeless(ledger: Ledger, seed: int) -> None:
    """The plan that keeps least of everything."""
    ledger.measure([[group.levels[0] for group in ledger.task.groups]])


class Regressor(nn.Module):
    """The toy's features with one number behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = toy_model("chain"), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x))  # type: ignore[no-any-return]


def test_without_labels_the_dense_network_is_what_is_followed() -> None:
    result = compressed([TRAIN[0][:16], TRAIN[0][16:]], [VAL[0]], [TEST[0]])
    assert result.table.figure == "output_error"
    dense, cut, tuned = (row.value for row in result.table.rows)
    assert dense == 0 < cut
    assert tuned <= cut * 1.5
    assert "output_error on test" in str(result.table)


def test_numbers_and_ways_of_tuning_of_ones_own() -> None:
    torch.manual_seed(0)
    model, seen = Regressor().eval(), []

    def batch(item: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return item["x"], item["y"]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append("loss")
        return (outputs - targets).abs().mean()

    def optimizer(network: nn.Module) -> torch.optim.Optimizer:
        seen.append("optimizer")
        return torch.optim.Adam(network.parameters(), 1e-3)

    with torch.no_grad():
        data = [{"x": x, "y": model(x)} for x, _ in (TRAIN, VAL, TEST)]
    result = prune_env.compress(
        model, data[:1], data[1:2], data[2:], loss=loss, optimizer=optimizer, batch=batch, **QUICK
    )
    assert {"loss", "optimizer"} == set(seen)
    assert result.table.figure in result.results["quality"]
    values = [row.value for row in result.table.rows]
    networks = (model, result.network)
    tested = [evaluate(net, data[2:], batch=batch, objective="regression") for net in networks]
    assert [values[0], values[-1]] == [found.figure for found in tested]


def test_a_figure_of_ones_own_has_no_interval() -> None:
    x, y = TEST

    def right(model: nn.Module) -> float:
        return float((model(x).argmax(1) == y).float().mean())

    result = compressed(objective=right, epochs=0)
    assert result.table.rows[-1].value == right(result.network)
    assert "not known" in str(result.table)


def test_the_report_says_by_how_much_the_search_was_too_sure(tmp_path: Path) -> None:
    result = compressed(epochs=0)
    (row,) = result.results["rows"]
    true = evaluate(result.network, TEST, reference=MODEL)
    assert (row["kl_held_out"], row["kl_held_out_error"]) == (
        true.divergence,
        true.divergence_error,
    )
    reach = 1.96 * (row["kl_error"] ** 2 + true.divergence_error**2) ** 0.5
    gap = row["kl"] - true.divergence
    said = result.report(tmp_path).with_suffix(".md").read_text()
    assert "| on test | reported minus that |" in said
    assert f"| {gap:+.4f} ({gap - reach:+.4f} to {gap + reach:+.4f}) |" in said


def test_without_test_data_it_says_so(kept: tuple[Path, Result], tmp_path: Path) -> None:
    result = compressed(TRAIN, VAL, epochs=0)
    assert result.table.measured_on == "val"
    assert "accuracy on val" in str(result.table)
    result.report(tmp_path)
    said = (tmp_path / "report.md").read_text()
    assert "There was no test data" in said
    assert "val accuracy without" in said
    assert "test accuracy" not in said


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"searcher": "uniffrom"}, ConfigError, "uniform"),
        ({"searcher": ["uniform", "uniform"]}, ConfigError, "each once"),
        ({"searcher": []}, ConfigError, "at least one"),
        ({"evaluations": 0}, ConfigError, "evaluations"),
        ({"epochs": -1}, ConfigError, "epochs"),
        ({"budget": 2.0}, BudgetError, "budget"),
        ({"bugdet": 0.5}, ConfigError, "budget"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(
    wrong: dict[str, Any], error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a task was made")

    monkeypatch.setattr(PruningTask, "from_model", made)
    with pytest.raises(error, match=said):
        compressed(**wrong)


@pytest.mark.long
def test_progress_is_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compressed(epochs=1)
    assert capsys.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    compressed(epochs=1)
    found = ("follow units", "verify groups", "calibrate", "solve levels", "measure the dense")
    for text in (*found, "search uniform", "tune uniform", "best reward", "val accuracy"):
        assert text in shown.getvalue()
    before = len(shown.getvalue())
    compressed(epochs=1, progress=False)
    assert len(shown.getvalue()) == before


def test_progress_is_what_the_caller_says() -> None:
    with progress("silent", 2) as bar:
        bar.step()  # nobody asked
    with showing(bars), showing(None), progress("silent", 2) as bar:
        bar.step()


def test_settings_take_the_place_of_epochs() -> None:
    settings = FinetuneSettings(epochs=0, seed=3)
    assert len(compressed(settings=settings).table.rows) == 2


def test_what_was_found_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    logging.disable(logging.NOTSET)
    with caplog.at_level(logging.INFO, "prune_env"):
        compressed(epochs=0)
    (said,) = [r.getMessage() for r in caplog.records if "can be pruned" in r.getMessage()]
    assert said.startswith("3 groups of 26 units can be pruned, 1 are left alone (1 x")
    assert "tied to the output" in said


def test_parts_of_steps_are_counted_too(capsys: pytest.CaptureFixture[str]) -> None:
    """A search that glimpses takes more steps than it has evaluations, each a part of one."""
    with lines("search", 4, "evaluations") as shown:
        for _ in range(30):
            shown.step("looking", 0.1)
        shown.step("best")
        shown.step("best")
    said = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert 5 <= len(said) <= 12
    assert said[-1] == "search: 4/4 evaluations" != said[-2]
