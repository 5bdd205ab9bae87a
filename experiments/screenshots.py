"""Pictures of a run's TensorBoard pages, for a README or for a machine without a desktop.

    python -m experiments.screenshots runs/digits-0.5-0123456789
    python -m experiments.screenshots runs/digits-0.5-0123456789 pictures

Starts TensorBoard on 127.0.0.1 and a free port, opens it in a headless Chromium, and writes
custom_scalars.png, sparsity.png, images.png and hparams.png, by default into RUN/screenshots.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from prune_env.errors import RunError
from prune_env.experiments.config.cli import main_guard
from prune_env.experiments.tensorboard import TensorBoardConfig, arguments

USAGE = "usage: python -m experiments.screenshots RUN_DIRECTORY [OUT]"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 90.0
"""Seconds to wait for TensorBoard to have read everything, and for each picture."""

MARGIN = 40
"""Empty rows of pixels left at the end of a page."""


@dataclass(frozen=True)
class Page:
    """A page of TensorBoard: what follows the address, and a window that holds it."""

    name: str
    fragment: str
    height: int
    width: int = 1600


PAGES = (
    # Unsmoothed: the best so far is a stair, and smoothing would draw values nobody measured.
    Page("custom_scalars", "#custom_scalars&_smoothingWeight=0", height=3000),
    # Not #timeseries: its cards are drawn one by one as they scroll into view, some never.
    Page("sparsity", "#scalars&tagFilter=^sparsity&_smoothingWeight=0", height=2400),
    Page("images", "#images", height=3000),
    Page("hparams", "#hparams", height=1000, width=2200),
)


@main_guard
def main(argv: Sequence[str]) -> int:
    """Write the pictures of a run and print their paths."""
    if len(argv) not in (1, 2) or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    run = Path(argv[0])
    for path in screenshots(run, Path(argv[1]) if len(argv) > 1 else run / "screenshots"):
        print(path)
    return 0


def screenshots(run: Path, out: Path) -> list[Path]:
    """Write a picture of every page of `PAGES` to `out`.

    Raises:
        RunError: no browser, no logs in `run`, TensorBoard or the browser fail or take too long.
    """
    browser = find_browser()
    logs = run / "tensorboard" if (run / "tensorboard").is_dir() else run
    runs = logged_runs(logs)
    if not runs:
        raise RunError(
            f"'{logs}' holds no TensorBoard logs. Give a run made with tensorboard = on."
        )
    out.mkdir(parents=True, exist_ok=True)
    with tensorboard(logs) as address:
        _wait_until_read(address, runs)
        return [shoot(browser, address, page, out / f"{page.name}.png") for page in PAGES]


def find_browser() -> str:
    """Path of a Chromium.

    Raises:
        RunError: there is none.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise RunError(f"none of {', '.join(BROWSERS)} is here. Install: apt-get install chromium.")
    return found


def logged_runs(logs: Path) -> set[str]:
    """Runs in a log directory, as TensorBoard names them."""
    files = logs.rglob("events.out.tfevents.*")
    return {file.parent.relative_to(logs).as_posix() for file in files}


@contextmanager
def tensorboard(logs: Path) -> Iterator[str]:
    """TensorBoard on `logs` as long as the block lasts; gives its address.

    Raises:
        RunError: it does not start.
    """
    command = [sys.executable, "-m", "tensorboard.main"]
    with tempfile.TemporaryFile("w+") as said:
        process = _start([*command, *arguments(TensorBoardConfig(logs, port=0))], said)
        try:
            yield _address(process, said)
        finally:
            _stop(process)


def _address(process: subprocess.Popen[bytes], said: IO[str]) -> str:
    for _ in _ticks():
        said.seek(0)
        text = said.read()
        found = re.search(r"http://127\.0\.0\.1:\d+/", text)
        if found:
            return found.group()
        if process.poll() is not None:
            break
    raise RunError(f"TensorBoard did not start: {text.strip()[-500:]}")


def _wait_until_read(address: str, runs: set[str]) -> None:
    """Until every run is listed and no more tags come.

    Raises:
        RunError: that takes too long.
    """
    before: Any = None
    for _ in _ticks(0.5):
        listed = set(_json(f"{address}data/runs"))
        tags = _json(f"{address}data/plugin/scalars/tags")
        if runs <= listed and tags == before:
            return
        before = tags
    raise RunError(f"TensorBoard has not read its {len(runs)} runs in {PATIENCE:.0f} s. Try again.")


def _json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return json.load(answer)


def shoot(browser: str, address: str, page: Page, path: Path) -> Path:
    """One picture of one page.

    Raises:
        RunError: the browser fails, takes too long, or shows nothing.
    """
    with tempfile.TemporaryDirectory() as profile, tempfile.TemporaryFile("w+") as said:
        process = _start(
            [
                browser, "--headless=new", "--disable-gpu", "--hide-scrollbars",
                "--no-sandbox",  # root and containers have none, and the page is our own
                f"--user-data-dir={profile}", f"--window-size={page.width},{page.height}",
                "--force-device-scale-factor=1.5",  # pictures are shown small, and legible so
                "--virtual-time-budget=20000",  # of the page's clock: until all has been fetched
                f"--screenshot={path.resolve()}", f"{address}{page.fragment}",
            ],
            said,
        )  # fmt: skip
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise RunError(f"{browser} took over {PATIENCE:.0f} s for '{page.name}'.") from None
        finally:
            _stop(process)
        said.seek(0)
        if not path.exists() or not trim(path):
            raise RunError(f"{browser} shows nothing of '{page.name}': {said.read()[-500:]}")
    return path


def trim(path: Path) -> bool:
    """Cut the empty end of a page off its picture; False if all of it is empty."""
    with Image.open(path) as picture:
        pixels_HWC = np.asarray(picture.convert("RGB"))
    filled = np.flatnonzero((pixels_HWC != pixels_HWC[-1]).any(axis=(1, 2)))
    if len(filled) == 0:
        return False
    Image.fromarray(pixels_HWC[: filled[-1] + MARGIN]).save(path, optimize=True)
    return True


def _start(command: Sequence[str], said: IO[str]) -> subprocess.Popen[bytes]:
    """A process with a group of its own, so that what it starts ends with it."""
    return subprocess.Popen(
        command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    for kill in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kill)
            process.wait(5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _ticks(pause: float = 0.1) -> Iterator[None]:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        yield
        time.sleep(pause)


if __name__ == "__main__":
    sys.exit(main(None))
