"""The bench of agents: every moment counts once, agents are left as they were, times are honest."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prune_env import Ledger
from prune_env.agents.payments import Practised
from prune_env.agents.vec_env import AsVecEnv
from prune_env.experiments import bench_agents
from prune_env.experiments.bench_agents import PARTS, AgentsConfig, Split, measure, watched
from prune_env.mdp.evaluator import Kept, OfFunction
from prune_env.mdp.task import PruningTask
from prune_env.quality.evaluators import Hopeless, Metrics
from prune_env.search.ledger import Exhausted
from prune_env.testing import toy_task

BUSY = 0.02
WATCHED = [(Ledger, "measure"), (AsVecEnv, "step_wait"), (Practised, "__call__")]


class Ticks:
    """A clock that is told when time passes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_inside_another_part_counts_there_alone() -> None:
    clock, twice = Ticks(), Ticks()
    split = Split(clock, twice)

    def passes(seconds: float) -> None:
        clock.now += seconds
        twice.now += 2 * seconds

    passes(1)
    with split.within("environment"):
        passes(10)
        with split.within("surrogate"), split.within("evaluation"):
            passes(100)
        with contextlib.suppress(Exhausted), split.within("evaluation"):
            passes(1000)
            raise Exhausted
        passes(10_000)
    passes(100_000)
    split.count()
    expected = {"agent": 100_001.0, "environment": 10_010.0, "surrogate": 0.0, "evaluation": 1100.0}
    assert split.seconds == {part: [value, 2 * value] for part, value in expected.items()}


def test_methods_are_put_back_even_after_an_error() -> None:
    before = [vars(owner)[name] for owner, name in WATCHED]
    with contextlib.suppress(Exhausted), watched(Split(time.process_time)):
        during = [vars(owner)[name] for owner, name in WATCHED]
        raise Exhausted
    assert not set(during) & set(before)
    assert [vars(owner)[name] for owner, name in WATCHED] == before


@pytest.mark.long
def test_the_last_line_is_json_and_shares_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    argv = ["--task", "toy", "--agents", "ppo,ppo_plan", "--evaluations", "13", "--rounds", "2"]
    assert bench_agents.main([*argv, "--out", str(out)]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(out.with_suffix(".json").read_text()) == figures
    rows = {row["agent"]: row for row in figures["rows"]}
    assert list(rows) == ["ppo", "ppo_plan", "ppo, practice off"]
    for name, row in rows.items():
        assert row["evaluations"] == 26 >= row["plans"]
        assert name in out.with_suffix(".md").read_text()
        for clock in ("processor", "wall"):
            share = row[clock]["share"]
            assert sum(share.values()) == pytest.approx(1)
            assert list(share) == list(PARTS)
            assert row[clock]["per_second"] == pytest.approx(26 / row[clock]["seconds"])
            assert (share.pop("surrogate") > 0) == (name != "ppo, practice off")
            assert min(share.values()) > 0
    assert {name: row["goal"] for name, row in rows.items() if row["goal"]} == {"ppo": 0.7}


CALLS: list[str] = []


class Busy(OfFunction):
    """The toy's evaluation, which takes its time; a cache that can be cleared."""

    def measure(
        self, kept: Kept, samples: int | None = None, hopeless: Hopeless | None = None
    ) -> Metrics:
        until = time.process_time() + BUSY
        while time.process_time() < until:
            pass
        return self.function(kept)

    def candidate(self, kept: Any) -> None:
        CALLS.append("built")
        assert all(0 <= level <= 20 for level in kept)

    def forget(self) -> None:
        CALLS.append("forgotten")


def busy(**options: Any) -> PruningTask:
    task = toy_task(**options)
    return replace(task, evaluator=Busy(task.evaluator.measure))


def test_evaluations_are_timed_on_a_fresh_cache_after_every_level_was_built() -> None:
    CALLS.clear()
    config = AgentsConfig(
        task=f"{__name__}:busy", agents=("random", "evolution"), plain=(), evaluations=4, rounds=2
    )
    rows = measure(config)["rows"]
    levels = max(len(group.levels) for group in busy(budget=0.5).groups)
    assert ["built"] * levels + ["forgotten"] * 4 == CALLS
    for row in rows:
        processor = row["processor"]  # bounds that hold on a machine of any speed
        assert processor["share"]["evaluation"] * processor["seconds"] >= BUSY * row["plans"]
        assert processor["per_second"] * BUSY * row["plans"] <= row["evaluations"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--agents", "pppo"], "'ppo'"),
        (["--plain", "evolution"], "ppo_plan"),
        (["--task", "tyo"], "toy"),
    ],
)
def test_bad_input_ends_with_status_2(
    wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_agents.main(["--task", "toy", *wrong]) == 2
    assert said in capsys.readouterr().err
