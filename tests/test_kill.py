"""Every searcher, killed with SIGKILL half-way, goes on to the same end at the same charge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prune_env.search.searchers import SEARCHERS

ROOT = Path(__file__).parent.parent
LIMIT, KILLED_AT = 12, 7
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from prune_env.search.searchers import run_search
from prune_env.testing import toy_task
import prune_env.agents.sb3, prune_env.agents.optuna_search  # once, before the kills

folder, limit, at, *names = sys.argv[1:]

def searched(name, place, listener=None):
    task = toy_task(target=[0.2, 0.5, 0.6, 0.3], budget=0.6)
    return run_search(task, name, int(limit), 3, Path(folder) / name / place, listener)

def die(ledger, outcome):
    if ledger.spent == int(at):
        os.kill(os.getpid(), signal.SIGKILL)

facts = {}
for name in names:
    child = os.fork()
    if not child:
        searched(name, "killed", die)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    found = []
    for place in ("killed", "whole"):
        result = searched(name, place)
        found.append([result.plan.kept, result.plan.notes, [o.kept for o in result.history]])
    facts[name] = [status, *found]
print(json.dumps(facts))
"""


@pytest.mark.long
def test_every_searcher_survives_kill_9(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(LIMIT), str(KILLED_AT), *SEARCHERS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout.splitlines()[-1])
    assert set(facts) == set(SEARCHERS)
    for name, (status, resumed, whole) in facts.items():
        spent = len(whole[2])
        assert (status == signal.SIGKILL) == (spent >= KILLED_AT), name
        assert resumed == whole, name
        assert whole[1]["charged"] <= LIMIT


@pytest.mark.long
def test_a_slice_of_the_kills_changes_no_result(tmp_path: Path) -> None:
    """The whole is `python -m experiments.kills`; its table: experiments/results/kills.md."""
    command = [
        sys.executable, "-m", "experiments.kills", "--kills", "2", "--jobs", "finetune,save",
        "--runs", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["kills"] == figures["identical"] == 2
    assert figures["died"] >= 1  # at a random moment it may be done
    assert figures["orphans"] == figures["failed"] == 0
