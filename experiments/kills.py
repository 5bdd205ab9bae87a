"""Does a kill -9 change any result? Commands are killed, given again, and compared with one whole.

    python -m experiments.kills --kills 100 --out experiments/results/kills

Half of the kills come at file operations, at every one of a command in turn (before a file is
opened to be written, synced or renamed; a sync may also lose the last bytes), half at random
moments; every fourth with the same command running twice at once. Drawn by the seed; the same
command goes on from where it was killed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_env.experiments.config.cli import invoked, main_guard, parse
from prune_env.experiments.config.run import option
from prune_env.experiments.report.publishing import command_of, publish

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
GONE = 20.0
"""Seconds within which the workers of a killed process must be gone."""


@dataclass(frozen=True)
class KillsConfig:
    """Kills of commands, at file operations and at random moments."""

    kills: int = option(100, "how many, over all commands")
    seed: int = option(0, "of all of them")
    jobs: tuple[str, ...] = option((), "commands to kill, see kill_jobs.py; empty: all")
    runs: Path = option(Path("runs/kills"), "folder of what they write")  # noqa: RUF009
    out: str = option("", "also write OUT.md and OUT.json, to keep")


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        job: the command.
        place: number of the file operation before which it dies; None: at a random moment.
        twice: whether the command runs a second time meanwhile.
        seed: of the moment.
    """

    job: str
    place: int | None
    twice: bool
    seed: int

    @property
    def kind(self) -> str:
        """Column of the table."""
        moment = "random moment" if self.place is None else "file operation"
        return f"{moment}, two at once" if self.twice else moment


class Countdown:
    """Counts this process's file operations in a folder, and kills it before one of them."""

    def __init__(self, folder: Path, place: int | None, draw: random.Random) -> None:
        self.folder, self.place, self.draw, self.count = str(folder), place, draw, 0
        sys.addaudithook(self._hear)
        sync = os.fsync

        def fsync(file: int) -> None:
            if self.count == self.place and draw.random() < 0.5:
                os.ftruncate(file, max(0, os.fstat(file).st_size - draw.randrange(1, 60)))
            self._step()
            sync(file)

        os.fsync = fsync  # type: ignore[assignment]

    def _hear(self, event: str, values: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(values[2], int) and values[2] & WRITES
        if (opened or event == "os.rename") and str(values[0]).startswith(self.folder):
            self._step()

    def _step(self) -> None:
        if self.count == self.place:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


@main_guard
def main(argv: Sequence[str]) -> int:
    """Kill what is left to kill, print the table; 1 if a kill changed a result."""
    config = parse(KillsConfig, argv, prog=invoked("kills"))
    from prune_env.errors import look_up
    from prune_env.experiments.benches.kill_jobs import JOBS

    jobs = {name: look_up("command", name, JOBS).work for name in config.jobs or JOBS}
    verdicts = killed(config, jobs)
    table, figures = report(verdicts)
    command = command_of("kills", argv)
    print(table)
    publish(config.out, command, f"# Kills\n\n{table}\n", {**figures, "command": command})
    return int(figures["identical"] < figures["kills"])


def killed(config: KillsConfig, jobs: dict[str, Callable[[Path], None]]) -> list[dict[str, Any]]:
    """A verdict for every kill, from the file of an earlier call where it is known."""
    import torch

    import prune_env.agents.optuna_search
    import prune_env.agents.sb3  # noqa: F401 (once, before processes are forked)

    torch.set_num_threads(1)
    runs = config.runs.absolute()
    runs.mkdir(parents=True, exist_ok=True)
    log = runs / f"verdicts-{config.seed}.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    done = {row["kill"]: row for row in map(json.loads, lines)}
    wholes = {name: whole(runs, name, work) for name, work in jobs.items()}
    for kill in drawn(config, {name: entry["operations"] for name, entry in wholes.items()}):
        if repr(kill) not in done:
            verdict = judged(kill, jobs[kill.job], wholes[kill.job], runs / "killed")
            done[repr(kill)] = {"kill": repr(kill), "job": kill.job, "kind": kill.kind, **verdict}
            with log.open("a") as file:
                file.write(json.dumps(done[repr(kill)]) + "\n")
            print(f"{kill}: {verdict}", file=sys.stderr)
    return list(done.values())


def whole(runs: Path, name: str, work: Callable[[Path], None]) -> dict[str, Any]:
    """What a command leaves that nobody kills, how long it takes, its file operations."""
    folder = runs / f"whole-{name.replace(' ', '_')}"
    shutil.rmtree(folder, ignore_errors=True)
    start, count = time.monotonic(), folder.with_suffix(".count")

    def counted(place: Path) -> None:
        countdown = Countdown(place, None, random.Random(0))
        work(place)
        count.write_text(str(countdown.count))

    if wait_for(forked(counted, folder)):
        raise SystemExit(f"'{name}' does not run at all; see {folder}.log")
    return {
        "left": _left(folder), "seconds": time.monotonic() - start,
        "operations": int(count.read_text()),
    }  # fmt: skip


def drawn(config: KillsConfig, operations: dict[str, int]) -> list[Kill]:
    """The kills: commands in turns, a file operation and a random moment in turns."""
    draw, kills, names = random.Random(config.seed), list[Kill](), list(operations)
    places = {name: draw.sample(range(count), count) for name, count in operations.items()}
    for number in range(config.kills):
        name, turn = names[number % len(names)], number // len(names)
        every = places[name]
        place = every[turn // 2 % len(every)] if turn % 2 == 0 else None
        kills.append(Kill(name, place, (turn // 2) % 2 == 1, draw.randrange(2**31)))
    return kills


def judged(
    kill: Kill, work: Callable[[Path], None], known: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Kill a command, give it again, and compare what it left."""
    shutil.rmtree(folder, ignore_errors=True)
    draw = random.Random(kill.seed)

    def doomed(place: Path) -> None:
        if kill.place is not None:
            Countdown(place, kill.place, draw)
        work(place)

    child = forked(doomed, folder)
    other = forked(work, folder) if kill.twice else None
    if kill.place is None:
        time.sleep(draw.uniform(0, known["seconds"]))
        os.kill(child, signal.SIGKILL)
    status = wait_for(child)
    orphans = not gone(child)
    failed = bool(other and wait_for(other)) or bool(wait_for(forked(work, folder)))
    same = not failed and _left(folder) == known["left"]
    return {
        "died": status == signal.SIGKILL, "orphans": orphans, "failed": failed, "identical": same,
    }  # fmt: skip


def forked(work: Callable[[Path], None], folder: Path) -> int:
    """A process, leader of a group of its own, that does some work."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        work(folder)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def wait_for(child: int) -> int:
    """How a process ended: 0, its exit status, or the signal that killed it."""
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def gone(group: int) -> bool:
    """Whether no process of a group is left after a moment; what is, is killed."""
    end = time.monotonic() + GONE
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


def _left(folder: Path) -> dict[str, Any]:
    from prune_env.experiments.benches.kill_jobs import left_behind

    text = json.dumps(left_behind(folder), sort_keys=True)
    found: dict[str, Any] = json.loads(text.replace(str(folder), "FOLDER"))
    return found


def report(verdicts: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """A Markdown table, a row per command and kind of kill, and the figures of all."""
    names = ("died", "identical", "failed", "orphans")
    counts: dict[tuple[str, str], Counter[str]] = {}
    for row in verdicts:
        counter = counts.setdefault((row["job"], row["kind"]), Counter())
        counter.update({"kills": 1, **{name: int(row[name]) for name in names}})
    lines = ["| command | killed at | kills | died | identical | failed | orphans |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for (job, kind), c in sorted(counts.items()):
        cells = (c["kills"], *(c[name] for name in names))
        lines.append(f"| {job} | {kind} | {' | '.join(map(str, cells))} |")
    total = sum(counts.values(), Counter[str]())
    figures = {"kills": total["kills"], **{name: total[name] for name in names}}
    lines.append(f"| all | | {' | '.join(str(figures[name]) for name in ('kills', *names))} |")
    return "\n".join(lines), figures


if __name__ == "__main__":
    sys.exit(main(None))
