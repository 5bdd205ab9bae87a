"""Pictures of TensorBoard, taken by a headless browser."""

from __future__ import annotations

import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prune_env.agents.callbacks import TensorBoardLog
from prune_env.errors import RunError
from prune_env.experiments import screenshots
from prune_env.experiments.screenshots import BROWSERS, PAGES, logged_runs, main, trim
from prune_env.search.searchers import run_search
from prune_env.testing import toy_task

BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory that holds nothing but the logs of a search."""
    folder = tmp_path_factory.mktemp("run")
    task = toy_task(budget=0.6)
    uniform = run_search(task, "uniform", 1, 0).best
    log = TensorBoardLog(folder / "tensorboard" / "random", task, {"uniform": uniform}, {"seed": 0})
    run_search(task, "random", 12, 0, on_outcome=log)
    log.close()
    return folder


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is here")
def test_every_page_is_pictured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    said = capsys.readouterr().out.split()
    assert said == [str(run / "screenshots" / f"{page.name}.png") for page in PAGES]
    for path in said:
        with Image.open(path) as picture:
            grey = np.asarray(picture.convert("L"))
        content = grey[200:, grey.shape[1] // 4 :]  # below the bar of tabs, beside the settings
        assert content.std() > 3, f"nothing on {path}"


@pytest.mark.long
def test_tensorboard_is_stopped_when_the_block_fails(run: Path) -> None:
    addresses = []

    def fail() -> None:
        with screenshots.tensorboard(run) as address:
            with urllib.request.urlopen(address, timeout=30) as answer:
                assert answer.status == 200
            addresses.append(address)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(addresses[0], timeout=5)


@pytest.mark.long
def test_a_tensorboard_that_does_not_start_is_quoted(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RunError, match="did not start"), screenshots.tensorboard(run):
        pass


@pytest.mark.long
def test_runs_are_named_as_tensorboard_names_them(run: Path) -> None:
    assert logged_runs(run / "tensorboard") == {"random"}
    assert logged_runs(run / "tensorboard" / "random") == {"."}


@pytest.mark.long
def test_what_is_missing_is_said_with_the_cure(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main([str(run)]) == 2
    assert "apt-get install chromium" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/true")
    with tempfile.TemporaryDirectory() as empty:
        assert main([empty]) == 2
    assert "holds no TensorBoard logs" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0


def test_a_picture_loses_its_empty_end(tmp_path: Path) -> None:
    pixels = np.full((400, 30, 3), 255, np.uint8)
    path = tmp_path / "page.png"
    Image.fromarray(pixels).save(path)
    assert not trim(path)
    pixels[100, 7] = 0
    Image.fromarray(pixels).save(path)
    assert trim(path)
    with Image.open(path) as picture:
        assert picture.size == (30, 100 + screenshots.MARGIN)
