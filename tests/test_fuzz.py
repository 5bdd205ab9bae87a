"""A slice of `experiments.fuzz`, and the fuzzer itself: it must see what it is there to see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from prune_env.errors import ConfigError, DataError
from prune_env.experiments import fuzz
from prune_env.experiments.benches.fuzz_doors import DOORS
from prune_env.experiments.benches.fuzz_inputs import Door, Random, damaged, edited, odd, require

SLOW = {
    "hf", "policy", "task", "parquet", "images", "checkpoint", "bundle", "ladders", "journal",
    "actions",
}  # fmt: skip
KINDS = [pytest.param(k, marks=[pytest.mark.long] if k in SLOW else []) for k in DOORS]


@pytest.mark.filterwarnings("ignore")  # of libraries, about what they are given
@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_has_no_fault(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "system")
    count = 12 if kind in SLOW else 60
    counts, faults = fuzz.tried(DOORS[kind], 7, range(count), tmp_path)
    assert faults == []
    assert sum(counts.values()) == count


def door(attempt: fuzz.Attempt) -> Door:
    return Door("plan", "a planted one", 1, lambda folder: attempt)


def wrong_type(random: Random) -> str:
    return str(1 + "1")  # type: ignore[operator]


def taken(random: Random) -> str:
    require(False, "a damaged file was taken")
    return "same"


def hungry(random: Random) -> str:
    np.ones(1 << 31, dtype=np.uint8)
    return "same"


def dying(random: Random) -> str:
    os._exit(3)


def refusing(random: Random) -> str:
    raise DataError("this is a clear refusal of an input")


def silent(random: Random) -> str:
    raise DataError("no")


@pytest.mark.parametrize(
    ("attempt", "says"),
    [(wrong_type, "TypeError at"), (taken, "a damaged file was taken"), (silent, "says nothing")],
)
def test_planted_faults_are_seen(attempt: fuzz.Attempt, says: str, tmp_path: Path) -> None:
    counts, faults = fuzz.tried(door(attempt), 0, range(3, 5), tmp_path)
    assert dict(counts) == {"FAULT": 2}
    assert [fault.number for fault in faults] == [3, 4]
    assert says in faults[0].what


def test_refusals_are_no_faults(tmp_path: Path) -> None:
    assert dict(fuzz.tried(door(refusing), 0, range(2), tmp_path)[0]) == {"refused": 2}


PLANTED = """
import sys
sys.path.insert(0, "tests")
import test_fuzz
from prune_env.experiments import fuzz
for attempt in (test_fuzz.hungry, test_fuzz.dying):
    counts, faults = fuzz._in_child(test_fuzz.door(attempt), 0, range(2))
    print(dict(counts), [fault.what for fault in faults])
"""


@pytest.mark.long
def test_memory_is_capped_and_a_death_is_a_fault() -> None:
    asked = [sys.executable, "-c", PLANTED]
    hungry, died = subprocess.run(asked, text=True, check=True, stdout=-1).stdout.splitlines()
    assert "MemoryError" in hungry
    assert "{'FAULT': 2}" in hungry
    assert "the process died" in died


def test_inputs_are_made_of_seed_kind_and_number() -> None:
    def made(seed: int, kind: str, number: int) -> str:
        return repr(odd(fuzz.random_of(seed, kind, number)))

    again = [[made(0, "plan", n) for n in range(50)] for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] != [made(1, "plan", n) for n in range(50)]
    assert again[0] != [made(0, "cache", n) for n in range(50)]


def test_damage_damages_and_edits_edit() -> None:
    data = bytes(range(200))
    changed = [damaged(np.random.default_rng(n), data) != data for n in range(100)]
    assert sum(changed) > 95
    content = {"a": [1, 2.5, "x"], "b": {"c": None}}
    found = [edited(np.random.default_rng(n), content) for n in range(100)]
    assert sum(repr(one) != repr(content) for one in found) > 85
    assert content == {"a": [1, 2.5, "x"], "b": {"c": None}}


@pytest.mark.parametrize(
    "options", [{"kinds": ("plane",)}, {"only": "plan"}, {"only": "x:1"}, {"inputs": 0}]
)
def test_options_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        fuzz.FuzzConfig(**options)  # type: ignore[arg-type]


@pytest.mark.long
def test_the_command_goes_on_from_where_it_was_killed(tmp_path: Path) -> None:
    """The same table as of one that was left alone."""
    command = [sys.executable, "-m", "experiments.fuzz", "--kinds", "options,settings"]
    command += ["--inputs", "1200", "--out"]
    whole = subprocess.run([*command, tmp_path / "whole"], text=True, check=True, stdout=-1)
    assert json.loads(whole.stdout.splitlines()[-1]) == {"inputs": 1200, "faults": 0}
    kept = tmp_path / "cut.progress.json"
    process = subprocess.Popen([*command, tmp_path / "cut"])
    while not kept.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, tmp_path / "cut"], check=True, stdout=subprocess.DEVNULL)
    tables = [json.loads((tmp_path / f"{n}.json").read_text())["kinds"] for n in ("whole", "cut")]
    assert tables[0] == tables[1]
