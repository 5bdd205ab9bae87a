"""Does any input crash it, blow it up, or pass damaged? A hundred thousand are tried, by kind.

    python -m experiments.fuzz --inputs 100000 --seed 0 --out experiments/results/fuzz
    python -m experiments.fuzz --seed 0 --only plan:1234      (one input again)

Every input is made from (seed, kind, number) alone. Each is taken as it was meant, taken as another
valid value (an edit that is itself well formed and sealed), or refused with one of our errors;
everything else is a fault. Inputs run in forked children whose memory is capped. The same command
goes on from where it was killed.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prune_env.errors import ConfigError, PruneEnvError
from prune_env.experiments.benches.fuzz_doors import DOORS, Attempt, Door
from prune_env.experiments.config.cli import invoked, main_guard, parse
from prune_env.experiments.config.run import option
from prune_env.progress import progress, showing
from prune_env.storage import read_json, write_json, write_text

CHUNK = 1000
"""Inputs of a child."""
MEMORY = 1 << 30
"""Bytes that a child may take beside what the parent has already."""
SECONDS = 20
"""That an input may take."""
VERDICTS = ("same", "valid", "refused", "FAULT")


@dataclass(frozen=True)
class FuzzConfig:
    """Odd values and damaged files at every border."""

    inputs: int = option(1000, "how many, over all kinds")
    seed: int = option(0, "of all of them")
    out: Path = option(Path("runs/fuzz"), "table and figures go to OUT.md and OUT.json")  # noqa: RUF009
    kinds: tuple[str, ...] = option((), "kinds to try; empty: all")
    only: str = option("", "KIND:NUMBER, one input again")

    def __post_init__(self) -> None:
        for kind in (*self.kinds, *([self.only.partition(":")[0]] if self.only else [])):
            if kind not in DOORS:
                raise ConfigError(f"there is no kind '{kind}'. Choose of {', '.join(DOORS)}.")
        if self.inputs < 1 or self.seed < 0:
            raise ConfigError("--inputs must be at least 1, --seed at least 0.")
        if self.only and not self.only.partition(":")[2].isdigit():
            raise ConfigError("--only is KIND:NUMBER, such as plan:12.")


@dataclass(frozen=True)
class Fault:
    """An input that was neither taken nor refused: what happened, and its number."""

    kind: str
    number: int
    what: str


def random_of(seed: int, kind: str, number: int) -> np.random.Generator:
    """The generator of one input."""
    return np.random.default_rng([seed, zlib.crc32(kind.encode()), number])


def judged(attempt: Attempt, random: np.random.Generator) -> tuple[str, str]:
    """The verdict on one input, and what happened if it is a fault."""
    try:
        with _alarm():
            return attempt(random), ""
    except PruneEnvError as error:
        if len(str(error)) < 20:
            return "FAULT", f"a refusal that says nothing: {error!r}"
        return "refused", ""
    except BaseException as error:  # whatever it is, it is the finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return "FAULT", f"{type(error).__name__} at {place}: {str(error)[:160]}"


class SlowInput(Exception):
    """An input took longer than `SECONDS`."""


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise SlowInput(f"more than {SECONDS} seconds of the processor")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def tried(door: Door, seed: int, numbers: range, folder: Path) -> tuple[Counter[str], list[Fault]]:
    """Verdicts on inputs `numbers` of a kind, in this process."""
    attempt, counts, faults = door.open(folder), Counter[str](), list[Fault]()
    for number in numbers:
        verdict, what = judged(attempt, random_of(seed, door.name, number))
        counts[verdict] += 1
        if verdict == "FAULT":
            faults.append(Fault(door.name, number, what))
    return counts, faults


def _in_child(door: Door, seed: int, numbers: range) -> tuple[Counter[str], list[Fault]]:
    """The same in a child with little memory; an input that kills it is a fault."""
    counts, faults, start = Counter[str](), list[Fault](), numbers.start
    while start < numbers.stop:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            notes = Path(folder) / "notes.jsonl"
            status = _forked(door, seed, range(start, numbers.stop), Path(folder), notes)
            rows = [json.loads(x) for x in _lines(notes)]
        for number, verdict, what in rows:
            counts[verdict] += 1
            if verdict == "FAULT":
                faults.append(Fault(door.name, number, what))
        start += len(rows)
        if start < numbers.stop:
            counts["FAULT"] += 1
            faults.append(Fault(door.name, start, f"the process died with status {status}"))
            start += 1
    return counts, faults


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _forked(door: Door, seed: int, numbers: range, folder: Path, notes: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            _cap_memory()
            with showing(None), notes.open("w", encoding="utf-8") as file:
                attempt = door.open(folder)
                for number in numbers:
                    verdict, what = judged(attempt, random_of(seed, door.name, number))
                    file.write(json.dumps([number, verdict, what]) + "\n")
                    file.flush()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return _awaited(child, notes)


def _awaited(child: int, notes: Path) -> int:
    """Wait for a child; one that says nothing for long is stuck in C code, and killed."""
    size, since = -1, time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        now = notes.stat().st_size if notes.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        if time.monotonic() - since > 6 * SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def _cap_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def chunks(config: FuzzConfig) -> Iterator[tuple[Door, range]]:
    """Every kind's part of the inputs, in pieces, the kinds in turn."""
    doors = [DOORS[name] for name in config.kinds or DOORS]
    total = sum(door.share for door in doors)
    counts = {door.name: max(1, round(config.inputs * door.share / total)) for door in doors}
    for start in range(0, max(counts.values()), CHUNK):
        for door in doors:
            if start < counts[door.name]:
                yield door, range(start, min(start + CHUNK, counts[door.name]))


def run(config: FuzzConfig) -> dict[str, Any]:
    """All inputs; returns and writes counts and faults."""
    kept = config.out.with_suffix(".progress.json")
    asked = [config.inputs, config.seed, list(config.kinds)]
    state: dict[str, Any] = {"asked": asked, "done": 0, "counts": {}, "faults": [], "seconds": 0.0}
    if kept.exists():
        found = read_json(kept, "progress of the fuzzer")
        state = found if found.get("asked") == asked else state
    work = list(chunks(config))
    with progress("fuzz", len(work) - state["done"], "chunks") as shown:
        for door, numbers in work[state["done"] :]:
            _advance(config, state, door, numbers)
            write_json(kept, state)
            shown.step(f"{len(state['faults'])} faults, last {door.name}")
    return finished(config, state, kept)


def _advance(config: FuzzConfig, state: dict[str, Any], door: Door, numbers: range) -> None:
    start = time.monotonic()
    counts, faults = _in_child(door, config.seed, numbers)
    state["counts"][door.name] = dict(Counter(state["counts"].get(door.name, {})) + counts)
    state["faults"] += [[f.kind, f.number, f.what] for f in faults]
    state["seconds"] += time.monotonic() - start
    state["done"] += 1
    for fault in faults:
        print(f"fault {fault.kind}:{fault.number}: {fault.what}", file=sys.stderr, flush=True)


def finished(config: FuzzConfig, state: dict[str, Any], kept: Path) -> dict[str, Any]:
    """Write the table and the figures; the progress is not needed any more."""
    result = {
        "inputs": sum(sum(counts.values()) for counts in state["counts"].values()),
        "faults": len(state["faults"]),
        "seed": config.seed,
        "seconds": round(state["seconds"], 1),
        "kinds": state["counts"],
        "list": [{"only": f"{k}:{n}", "what": what} for k, n, what in state["faults"]],
    }
    write_text(config.out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_text(config.out.with_suffix(".md"), page(config, result))
    kept.unlink(missing_ok=True)
    return result


def page(config: FuzzConfig, result: dict[str, Any]) -> str:
    """The table, as Markdown."""
    lines = [
        f"# {result['inputs']:,} odd inputs, {result['faults']} faults",
        "",
        f"`python -m experiments.fuzz --inputs {config.inputs} --seed {config.seed} --out "
        f"{config.out}`, {result['seconds'] / 60:.0f} min on one core. *Same*: taken, and it means "
        "what the undamaged one means. *Valid*: another value that is well formed (and, for sealed "
        "files, sealed again after the edit). *Refused*: an error of the `PruneEnvError` family, "
        "or one that Gymnasium documents. *Fault*: anything else: another exception, a damaged "
        f"file taken, more than {MEMORY >> 20} MB or {SECONDS} s for one input.",
        "",
        "| kind | what is varied | inputs | same | valid | refused | faults |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, counts in sorted(result["kinds"].items()):
        cells = [f"{counts.get(verdict, 0):,}" for verdict in VERDICTS]
        total = f"{sum(counts.values()):,}"
        lines.append(f"| {name} | {DOORS[name].said} | {total} | {' | '.join(cells)} |")
    lines += ["", *(f"- `--only {f['only']}`: {f['what']}" for f in result["list"])]
    return "\n".join(lines).rstrip() + "\n"


def again(config: FuzzConfig) -> int:
    """One input, in this process, its exception not caught."""
    kind, _, number = config.only.partition(":")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        attempt = DOORS[kind].open(Path(folder))
        print(attempt(random_of(config.seed, kind, int(number))))
    return 0


def main(argv: Sequence[str]) -> int:
    """The command; the last line is JSON."""
    config = parse(FuzzConfig, argv, prog=invoked("fuzz"), description=__doc__ or "")
    if config.only:
        return again(config)
    result = run(config)
    print(config.out.with_suffix(".md").read_text(encoding="utf-8"))
    print(json.dumps({"inputs": result["inputs"], "faults": result["faults"]}))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main_guard(main)(None))
