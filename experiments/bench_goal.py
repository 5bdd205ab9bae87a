"""What should pay a search for plans that are tuned: closeness before, or after a few steps?

    python -m experiments.bench_goal --task vit_cifar10 --budgets 0.5,0.3

Good plans of one budget (of allocators, of searches, and beside them) are measured in every way: as
they are cut and repaired, and after so many steps of tuning. Then each is tuned for long, with
several seeds. The table holds the rank correlation of every reward with what the plans are worth in
the end, and what the plan that it would have picked is worth, beside the uniform one. Rewards are
of training samples; the end is of test, where nothing was chosen. Every finished plan is kept under
--runs: a killed run goes on from there.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from prune_env.experiments.benches.harness import BenchFlags, bench
from prune_env.experiments.config.options import AT_LEAST_1, option, require
from prune_env.experiments.report.correlation import interval, spearman
from prune_env.experiments.report.publishing import markdown, note

if TYPE_CHECKING:
    from prune_env import PruningTask
    from prune_env.mdp.evaluator import PlanEvaluator
    from prune_env.pipeline.project import Project

AS_IS = "as it is"


@dataclass(frozen=True)
class GoalConfig(BenchFlags):
    """Rewards before and after a few steps of tuning, against the end of it."""

    task: str = option("vit_cifar10", "project, by name")
    budgets: tuple[float, ...] = option((0.5, 0.3), "fractions of the MACs that may remain")
    plans: int = option(24, "good plans of every budget")
    allocators: tuple[str, ...] = option(
        ("uniform", "sensitivity", "global", "sensitivity_measured"),
        "whose plans are among them, the first one what others stand beside",
    )
    searchers: tuple[str, ...] = option(
        ("surrogate", "evolution"), "whose best plans before tuning are among them"
    )
    evaluations: int = option(60, "of every search")
    steps: tuple[int, ...] = option((10, 30, 60, 90), "of the short tunings")
    reward_samples: int = option(1000, "that rewards are of")
    tune_epochs: int = option(1, "of the long tuning")
    tune_samples: int = option(0, "training samples of an epoch of it; 0: all")
    tune_seeds: int = option(3, "of the long tuning")
    resamples: int = option(2000, "bootstrap resamples of the plans", identity=False)
    seed: int = option(0, "of the samples and of the searches")
    processes: int = option(1, "plans at a time, one thread each", identity=False)
    runs: Path = option(Path("runs/goal"), "what is finished is kept there", identity=False)  # noqa: RUF009

    def __post_init__(self) -> None:
        names = ("plans", "evaluations", "reward_samples", "tune_epochs", "tune_seeds", "processes")
        require(self, dict.fromkeys(names, AT_LEAST_1))


def measure(config: GoalConfig) -> dict[str, Any]:
    """All plans of all budgets, and the rank correlations over them."""
    from prune_env.experiments.sweeps.parallel import mapped

    cells = []
    for budget in config.budgets:
        found = good_plans(config, budget)
        plans = mapped(partial(facts_of, config, budget), list(found), config.processes)
        for kept, facts in zip(found, plans, strict=True):
            facts["source"] = found[kept]
        cells.append({"budget": budget, **analyse(config, plans), "plans": plans})
    return {"rows": cells}


@lru_cache(maxsize=1)
def opened(config: GoalConfig, budget: float) -> Project:
    """The project with its task at a budget, whose plans are tuned before they are measured."""
    from prune_env import PruningTask
    from prune_env.experiments.networks.presets import open_named

    project = open_named(
        config.task, budget=budget, reward_samples=config.reward_samples, seed=config.seed,
        goal="tuned", tuned_steps=max(config.steps),
    )  # fmt: skip
    assert not isinstance(project, PruningTask)
    return project


def good_plans(config: GoalConfig, budget: float) -> dict[tuple[int, ...], str]:
    """Where each plan is from; searched for as they are, without tuning."""
    from prune_env.fingerprint import identity_of, joined_identity
    from prune_env.mdp.rules import as_kept
    from prune_env.pipeline.once import once
    from prune_env.search.neighbours import best_plans, nearby
    from prune_env.search.searchers import run_search

    def measured() -> dict[str, Any]:
        task = as_it_is(opened(config, budget).task)
        found: dict[tuple[int, ...], str] = {}
        for name in config.allocators:
            found.setdefault(run_search(task, name, 4 * task.length + 2, 0).best.kept, name)
        places = max(0, config.plans - len(found))
        for name in config.searchers:
            result = run_search(task, name, config.evaluations, config.seed)
            ranked = list(dict.fromkeys(best_plans(result.history, len(result.history))))
            share = places // (len(config.searchers) + 1)
            for kept in ranked[: 2 * share : 2]:
                found.setdefault(kept, name)
        generator = np.random.default_rng(config.seed)
        parents = list(found)[1:]  # beside a plan that is far behind there are none that are good
        beside = nearby(task, parents, 4 * config.plans, generator)
        for row in generator.permutation(beside):
            if len(found) >= config.plans:
                break
            found.setdefault(as_kept(row), "beside")
        return {"plans": [[list(kept), source] for kept, source in found.items()]}

    made_of = identity_of(config=_of_plans(config), budget=budget)
    path = config.runs / f"{config.task}-{budget:g}-{joined_identity(made_of)}.json"
    return {tuple(kept): source for kept, source in once(path, made_of, measured)["plans"]}


def _of_plans(config: GoalConfig) -> list[Any]:
    return [
        *_of_rewards(config), config.plans, config.allocators, config.searchers, config.evaluations
    ]  # fmt: skip


def _of_rewards(config: GoalConfig) -> list[Any]:
    return [config.task, config.reward_samples, config.seed, max(config.steps)]


def as_it_is(task: PruningTask) -> PruningTask:
    """The same task, its plans not tuned before they are measured."""
    from prune_env.mdp.candidates import CandidateEvaluator

    assert isinstance(task.evaluator, CandidateEvaluator)
    return dataclasses.replace(
        task, evaluator=dataclasses.replace(task.evaluator, short=None, cache={}, references={})
    )


def facts_of(config: GoalConfig, budget: float, kept: tuple[int, ...]) -> dict[str, Any]:
    """All rewards of a plan, and its end with every seed; read where they are finished."""
    from prune_env.fingerprint import identity_of, joined_identity
    from prune_env.pipeline.once import once

    def measured() -> dict[str, Any]:
        project = opened(config, budget)
        ends = [end_of(config, project, kept, seed) for seed in range(config.tune_seeds)]
        paid = {name: way.measure(kept).divergence for name, way in ways(config, budget).items()}
        return {"kept": list(kept), "rewards": paid, "ends": ends}

    settings = [config.steps, config.tune_epochs, config.tune_samples, config.tune_seeds]
    made_of = identity_of(config=[*_of_rewards(config), *settings], budget=budget, kept=kept)
    folder = config.runs / f"{config.task}-{budget:g}-plans"
    path = folder / f"{joined_identity(made_of)}.json"
    facts = once(path, made_of, measured)
    note(f"{budget:g} {facts['rewards']} {facts['ends']}")
    return facts


@lru_cache(maxsize=1)
def ways(config: GoalConfig, budget: float) -> dict[str, PlanEvaluator]:
    """What measures a plan as it is and after every number of steps, on the reward samples."""
    from prune_env.mdp.candidates import CandidateEvaluator

    task = opened(config, budget).task
    evaluator, found = task.evaluator, {AS_IS: as_it_is(task).evaluator}
    assert isinstance(evaluator, CandidateEvaluator)
    assert evaluator.short is not None
    for steps in config.steps:
        short = dataclasses.replace(evaluator.short, steps=steps)
        found[f"{steps} steps"] = dataclasses.replace(evaluator, short=short, cache={})
    return found


def end_of(
    config: GoalConfig, project: Project, kept: tuple[int, ...], seed: int
) -> dict[str, Any]:
    """Divergence and figure on test after the last epoch of a long tuning (none is chosen)."""
    from prune_env import FinetuneSettings, finetune
    from prune_env.pipeline.stages import measured
    from prune_env.quality.batches import take_batches

    settings = FinetuneSettings(**{**project.recipe, "epochs": config.tune_epochs, "seed": seed})
    train: Any = project.train
    if config.tune_samples:
        train = take_batches(train, config.tune_samples)
    result = finetune(
        project.task.network(kept), train, take_batches(project.val, 250), settings=settings,
        teacher=project.dense, objective=project.task.objective,
    )  # fmt: skip
    network = result.model
    network.load_state_dict(dict(result.last))
    end = measured(project, network, project.test, apart=True)
    return {"divergence": end.divergence, "figure": project.yardstick.of(end)}


def analyse(config: GoalConfig, plans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For every reward: how it ranks the ends, and the end of the plan that it picks.

    `reliability` is the mean rank correlation between the ends of two tuning seeds.
    """
    by_seed = np.array([[end["divergence"] for end in plan["ends"]] for plan in plans])
    end_N, figure_N = by_seed.mean(1), _figures(plans)
    rewards = {}
    for name in plans[0]["rewards"]:
        paid_N = np.array([plan["rewards"][name] for plan in plans])
        low, high = interval(paid_N, end_N, config.resamples, config.seed)
        picked = int(paid_N.argmin())
        rewards[name] = {
            "spearman": float(spearman(paid_N, end_N)), "low": low, "high": high,
            "spearman_figure": float(spearman(-paid_N, figure_N)),
            "picks": plans[picked].get("source", ""), "end": float(end_N[picked]),
            "figure": float(figure_N[picked]), **_beside(by_seed[picked], by_seed[0]),
        }  # fmt: skip
    seeds = range(by_seed.shape[1])
    pairs = [(a, b) for a in seeds for b in seeds if a < b]
    between = [float(spearman(by_seed[:, a], by_seed[:, b])) for a, b in pairs]
    best = int(end_N.argmin())
    return {
        "rewards": rewards, "reliability": fmean(between) if between else math.nan,
        "uniform": {"end": float(end_N[0]), "figure": float(figure_N[0])},
        "best": {"end": float(end_N[best]), "figure": float(figure_N[best]),
                 "source": plans[best].get("source", "")},
    }  # fmt: skip


def _figures(plans: Sequence[Mapping[str, Any]]) -> Any:
    return np.array([fmean(end["figure"] for end in plan["ends"]) for plan in plans])


def _beside(ours: Any, uniform: Any) -> dict[str, float]:
    """Ratio to the uniform plan's end, and its smallest and largest over the tuning seeds."""
    ratio = ours / uniform
    return {"to_uniform": float(ours.mean() / uniform.mean()), "least": float(ratio.min()),
            "most": float(ratio.max())}  # fmt: skip


def page(figures: Mapping[str, Any]) -> str:
    """What every reward is worth, budget by budget."""
    settings = figures["settings"]
    count = settings["tune_samples"] or "all"
    text = (
        f"# Rewards before and after a few steps of tuning, {settings['task']}\n\n"
        f"{settings['plans']} good plans of each budget, of {', '.join(settings['allocators'])}, "
        f"of searches before tuning ({', '.join(settings['searchers'])}, "
        f"{settings['evaluations']} evaluations) and beside these. Rewards are divergences on "
        f"{settings['reward_samples']:,} training samples; the end is the divergence on test after "
        f"{settings['tune_epochs']} epoch(s) of {count} training samples with the dense network as "
        f"teacher, mean of {settings['tune_seeds']} tuning seeds. *Picked*: the end of the plan "
        "that a reward likes best, over the uniform plan's, smallest and largest over the seeds in "
        "brackets.\n"
    )
    for cell in figures["rows"]:
        uniform, best = cell["uniform"], cell["best"]
        rows = [
            [
                name,
                f"{row['spearman']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
                f"{row['spearman_figure']:.2f}",
                f"{row['to_uniform']:.3f} ({row['least']:.3f} to {row['most']:.3f})",
                f"{row['figure']:.4g}",
                row["picks"],
            ]
            for name, row in cell["rewards"].items()
        ]
        head = ["reward", "Spearman with the end", "with its figure", "picked / uniform",
                "figure of the picked", "is of"]  # fmt: skip
        text += (
            f"\n## {cell['budget']:g} of the MACs\n\nThe uniform plan ends at {uniform['end']:.4f} "
            f"(figure {uniform['figure']:.4g}), the best of all at {best['end']:.4f} "
            f"({best['figure']:.4g}, {best['source']}). Two tuning seeds rank the plans alike with "
            f"a correlation of {cell['reliability']:.2f}.\n\n{markdown(head, rows)}"
        )
    return text


main = bench("bench_goal", GoalConfig, measure, page)

if __name__ == "__main__":
    sys.exit(main(None))
