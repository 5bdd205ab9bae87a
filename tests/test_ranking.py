"""Quality ranks, cost breaks ties, and every searcher climbs the same order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_env import Ledger, PruneEnv
from prune_env.mdp.evaluator import OfFunction
from prune_env.mdp.rewards import REWARDS, Outcome, best_of, improved
from prune_env.mdp.task import PruningTask
from prune_env.quality.evaluators import Metrics
from prune_env.search.searchers import SEARCHERS, run_search
from prune_env.testing import toy_task

QUALITY = {"divergence": lambda m: -m.divergence, "figure": lambda m: m.figure}
ALIKE = ("a2c", "td3", "ddpg", "tqc")
"""Agents that are paid by the same few lines as ppo and sac."""
ratios = st.sampled_from([0.2, 0.3, 0.4, 0.5])


@st.composite
def outcomes(draw: st.DrawFn, reward: str) -> Outcome:
    """An outcome as a task would pay it; few values, so that ties are common."""
    quality = draw(st.sampled_from([0.0, 0.1, 0.1005, 0.9]))
    metrics = Metrics(figure=quality, loss=quality, divergence=quality, samples=10)
    flops, params = draw(ratios), draw(ratios)
    outcome = Outcome((1,), metrics, 1e6 * flops, flops, params, {}, draw(st.booleans()))
    return replace(outcome, terms=REWARDS[reward](outcome))


@pytest.mark.parametrize("reward", QUALITY)
@given(data=st.data())
def test_the_best_has_the_best_quality_and_then_the_least_cost(
    reward: str, data: st.DataObject
) -> None:
    history = data.draw(st.lists(outcomes(reward), min_size=1, max_size=12))
    best, of = best_of(history), QUALITY[reward]
    rivals = [outcome for outcome in history if outcome.eligible] or history
    assert best.eligible == any(outcome.eligible for outcome in history)
    finest = [o for o in rivals if of(o.metrics) == max(of(r.metrics) for r in rivals)]
    assert of(best.metrics) == of(finest[0].metrics)
    assert best.flops_ratio == min(outcome.flops_ratio for outcome in finest)
    lightest = [o for o in finest if o.flops_ratio == best.flops_ratio]
    assert best.params_ratio == min(outcome.params_ratio for outcome in lightest)
    assert best is next(outcome for outcome in history if outcome.rank == best.rank)
    steps = [outcome for outcome, up in zip(history, improved(history), strict=True) if up]
    assert not best.eligible or steps[-1] is best
    assert [o.rank for o in steps] == sorted({outcome.rank for outcome in steps})


@given(st.permutations([math.nan, -math.inf, -1.0, 0.5]))
def test_a_reward_that_is_no_number_is_never_the_best(values: Sequence[float]) -> None:
    nothing = Outcome((1,), Metrics(0.0, 0.0, 0.0, 1), 1.0, 0.5, 0.5)
    assert best_of(replace(nothing, terms={"paid": value}) for value in values).reward == 0.5


def priced(reward: str = "divergence", quality: Sequence[float] = (0.105, 0.1)) -> PruningTask:
    """Plans of two groups of two units; keeping less of the first costs less, and is worse."""
    task = toy_task(length=2, width=2, leftover="leave", budget=0.9)

    def evaluate(kept: tuple[int, ...]) -> Metrics:
        value = quality[kept[0] > 1]
        return Metrics(figure=1 - value, loss=value, divergence=value, samples=1)

    return replace(task, evaluator=OfFunction(evaluate), reward=REWARDS[reward])


@pytest.mark.parametrize("reward", QUALITY)
def test_a_cheaper_network_is_not_preferred_to_a_better_one(reward: str) -> None:
    """0.005 nats, or half a point, were worth less than a twentieth of the MACs once."""
    ledger = Ledger(priced(reward), 2)
    worse, better = ledger.measure([(1, 1), (2, 1)])
    assert worse.flops_ratio < better.flops_ratio - 0.05
    assert ledger.best is better


@pytest.mark.parametrize("reward", QUALITY)
def test_of_two_equally_good_ones_the_cheaper_is_the_result(reward: str) -> None:
    ledger = Ledger(priced(reward, (0.1, 0.1)), 2)
    ledger.measure([(2, 1)])
    assert ledger.measure([(1, 1)])[0] is ledger.best


def test_an_episode_is_paid_what_it_is_ranked_by() -> None:
    env = PruneEnv(priced())
    env.reset()
    env.step([0.5])
    *_, info = env.step([0.5])
    assert info["reward_terms"] == {"divergence": -info["kl"]}


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SEARCHERS if name not in ALIKE])
def test_every_searcher_climbs_what_the_ledger_ranks_by(name: str) -> None:
    """It asks for the same plans however the same reward is made up."""
    plain = toy_task(target=[0.2, 0.6, 0.3, 0.7], budget=0.6)
    dense = Metrics(figure=1.0, loss=0.0, divergence=0.0, samples=1)

    def apart(outcome: Outcome) -> dict[str, float]:
        return {"divergence": -outcome.metrics.divergence, "cost": 1.0 - outcome.flops_ratio}

    def together(outcome: Outcome) -> dict[str, float]:
        return {"paid": math.fsum(apart(outcome).values())}

    def hidden(kept: tuple[int, ...]) -> Metrics:
        return replace(plain.evaluator.measure(kept), figure=sum(kept) % 7 / 7)

    one = replace(plain, reward=apart, evaluator=replace(plain.evaluator, dense=dense))  # type: ignore[type-var]
    other = replace(plain, reward=together, evaluator=OfFunction(hidden))
    first, second = (run_search(task, name, 10, seed=1) for task in (one, other))
    assert [o.kept for o in first.history] == [o.kept for o in second.history]
    assert first.best.kept == second.best.kept
    assert first.best.rank == max(outcome.rank for outcome in first.history)
