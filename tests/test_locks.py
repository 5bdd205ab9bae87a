"""One process at a time in a folder; a lock ends with its process, workers with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prune_env.errors import RunError
from prune_env.locks import LOCK, locked

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from prune_env.locks import locked
with locked(sys.argv[1]):
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
"""
WORKERS = """
import os, sys, time
from pathlib import Path
from prune_env.experiments.sweeps.parallel import mapped

def work(place):
    Path(place, str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    mapped(work, [sys.argv[1]] * 2, 2)
"""


def holder(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that is in the folder when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def test_who_comes_second_waits_and_says_for_whom(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with holder(tmp_path / "new", 0.5) as first:
        with locked(tmp_path / "new"):
            assert first.wait(10) == 0, "it was through"
            assert (tmp_path / "new" / LOCK).read_text() == str(os.getpid())
        assert f"waiting for process {first.pid}, which works in" in capsys.readouterr().err


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    with holder(tmp_path, 60) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        with locked(tmp_path):
            pass


def test_a_lock_may_be_taken_again_inside_and_is_not_left_to_a_child(tmp_path: Path) -> None:
    with locked(tmp_path), locked(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(60)  # would keep the lock if it had inherited it
    try:
        with holder(tmp_path, 0):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunError, match="Choose a folder you may write to"),
        locked(tmp_path / "file" / "x"),
    ):
        pass


@pytest.mark.long
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script, place = tmp_path / "script.py", tmp_path / "place"
    script.write_text(WORKERS)
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(place)], env=environment, stderr=subprocess.DEVNULL
    )
    while len(list(place.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    workers = [int(path.name) for path in place.iterdir()]
    for _ in range(400):
        if not any(map(_runs, workers)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{workers} outlived their parent")


def _runs(process: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
