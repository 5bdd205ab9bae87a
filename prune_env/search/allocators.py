"""Allocators: exact on the budget, no learning. Each makes a `Path`, measured at the budget.

The path serves twice: as a searcher's answer, and as the prior that agents and evolution start at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from prune_env.mdp.evaluator import Kept
from prune_env.mdp.losses import expected_loss, expected_losses
from prune_env.mdp.path import Path, greedy_path, path_of, uniform_path
from prune_env.mdp.rewards import Outcome, best_of
from prune_env.mdp.rules import as_kept
from prune_env.mdp.task import PruningTask
from prune_env.search.ledger import Ledger

Floats = NDArray[np.float64]

ALONE = (0.5, 0.75, 0.25, 0.9)
"""Sparsities at which a group is measured alone; the first ones where evaluations are few."""
STEP = 0.12
"""Offset of a probe: what the group keeps changes by a factor of 1.3."""
OUTLIER, OWL_SPREAD = 5.0, 0.08
"""OWL's M and lambda: a score is an outlier above 5 means, sparsities stray by at most 0.08."""


def plan_of(task: PruningTask, path: Path) -> Kept:
    """A path's plan at the task's budget."""
    return task.around(path).beside([0.0] * task.length)


def predicted_path(task: PruningTask) -> Path:
    """By the loss that the repair predicts for every level (for a task without: by score mass)."""
    return greedy_path(task.rules, expected_losses(task))


def global_path(task: PruningTask) -> Path:
    """One threshold that grows over the units of all groups.

    Scores are divided by their group's mean, since layers differ in scale for reasons that say
    nothing about importance.
    """
    fall = []
    for group in task.groups:
        scores = np.sort(task.scores[group.name].double().flatten().numpy())[::-1]
        mean = float(scores.mean())
        relative = scores / mean if mean > 0 else np.ones_like(scores)
        # A level falls when the last unit that it has beyond the next is below the threshold.
        fall.append(np.maximum.accumulate(relative[np.array(group.levels[1:]) - 1][::-1]))
    return path_of(task.rules, fall)


def owl_path(task: PruningTask) -> Path:
    """Blocks with more outlying scores keep more (OWL, Yin et al. 2024, section 3).

    Sparsities stray from a common one by at most `OWL_SPREAD`, in proportion to the block's share
    of scores above `OUTLIER` times its mean; exact for `criterion="wanda"`. A block is what shares
    the first number of a layer's name.
    """
    blocks = [_block(group.name) for group in task.groups]
    share = {}
    for block in dict.fromkeys(blocks):
        members = [g.name for g, b in zip(task.groups, blocks, strict=True) if b == block]
        scores = np.concatenate([task.scores[n].double().abs().flatten().numpy() for n in members])
        share[block] = float((scores > OUTLIER * scores.mean()).mean())
    lowest, spread = min(share.values()), max(share.values()) - min(share.values())
    above = {b: (value - lowest) / spread if spread else 0.5 for b, value in share.items()}
    fall = []
    for group, block in zip(task.groups, blocks, strict=True):
        levels = np.array(group.levels)
        sparsity = 1.0 - (levels[1:] + levels[:-1])[::-1] / 2 / group.units
        fall.append(sparsity - OWL_SPREAD * (1.0 - 2.0 * above[block]))
    return path_of(task.rules, fall)


def _block(name: str) -> str:
    found = re.search(r"\.?\d+", name)
    return name[: found.end()] if found else name


PATHS: dict[str, Callable[[PruningTask], Path]] = {
    "uniform": lambda task: uniform_path(task.rules),
    "sensitivity": predicted_path,
    "global": global_path,
    "owl": owl_path,
}
"""Paths that cost no evaluation."""


def sensitivity(ledger: Ledger, seed: int) -> None:
    """Allocate by predicted loss; one evaluation."""
    ledger.measure([plan_of(ledger.task, predicted_path(ledger.task))])


def global_threshold(ledger: Ledger, seed: int) -> None:
    """One threshold over the units of all groups; one evaluation."""
    ledger.measure([plan_of(ledger.task, global_path(ledger.task))])


def owl(ledger: Ledger, seed: int) -> None:
    """Allocate by the share of outlying scores; one evaluation."""
    ledger.measure([plan_of(ledger.task, owl_path(ledger.task))])


def sensitivity_measured(ledger: Ledger, seed: int) -> None:
    """Measure each group alone at up to four sparsities, allocate by what was lost.

    With fewer evaluations than groups the rest is taken from predicted losses.
    """
    task = ledger.task
    ledger.measure([plan_of(task, predicted_path(task))])  # something to show, whatever happens
    if ledger.left >= 2:
        ledger.measure([plan_of(task, measured_path(ledger, ledger.left - 1))])


def measured_path(ledger: Ledger, evaluations: float) -> Path:
    """A path from groups measured alone, within so many evaluations."""
    losses = measured_losses(ledger, evaluations)
    return greedy_path(ledger.task.rules, losses) if losses else predicted_path(ledger.task)


def measured_losses(
    ledger: Ledger, evaluations: float, share: float = 1.0, fewest: int = 1
) -> list[Floats]:
    """What every level of every group loses alone, (L,) of each, within so many evaluations.

    Groups are measured at `fewest` to `len(ALONE)` levels on a share of the samples, all on the
    same ones. Empty where that cannot be paid for.
    """
    task, whole = ledger.task, ledger.task.rules.most_G
    if evaluations < share * (1 + fewest * task.length):
        return []
    # A repair on few samples costs something: it is measured too, on the whole network.
    (nothing,) = ledger.probe([as_kept(whole)], share)
    dear = nothing.metrics.share * task.length
    per_group = int(min(len(ALONE), (evaluations - nothing.metrics.share) // dear))
    if per_group < fewest:
        return []
    alone = [
        (number, level)
        for number, group in enumerate(task.groups)
        for level in dict.fromkeys(
            group.nearest_level((1.0 - sparsity) * group.units) for sparsity in ALONE[:per_group]
        )
        if level != group.levels[-1]
    ]
    plans_NG = np.tile(whole, (len(alone), 1))
    for row, (number, level) in enumerate(alone):
        plans_NG[row, number] = level
    known = [{group.levels[-1]: 0.0} for group in task.groups]
    outcomes = ledger.probe(map(as_kept, plans_NG), share)
    for (number, level), outcome in zip(alone, outcomes, strict=True):
        known[number][level] = max(0.0, nothing.reward - outcome.reward)
    return [
        _between(group.levels, known[number], expected_loss(task, number))
        for number, group in enumerate(task.groups)
    ]


def _between(levels: Sequence[int], known: dict[int, float], shape_L: Floats) -> Floats:
    """Losses of all levels: the predicted ones, scaled to pass through the measured ones."""
    at = sorted(known)
    places = [levels.index(level) for level in at]
    floor = 1e-6 + 1e-3 * max(shape_L.max(), 0.0)
    factor = [
        known[level] / (shape_L[place] + floor) for level, place in zip(at, places, strict=True)
    ]
    if len(factor) > 1:
        factor[-1] = factor[-2]  # nothing is lost at the whole group: its factor is unknown
    return (shape_L + floor) * np.interp(levels, at, factor)


def probe(ledger: Ledger, seed: int) -> None:
    """Each group a little more and a little less than uniform, at the budget; then allocate.

    A parabola through the three outcomes of every group gives an offset for it; the allocation is
    measured at half, once and one and a half times these offsets, if evaluations are left. With too
    few for all groups, those with the largest share of the cost are probed.
    """
    task = ledger.task
    (middle,) = ledger.measure([task.beside([0.0] * task.length)])
    shares = [task.costs.share(number, task.on) for number in range(task.length)]
    count = int(min(task.length, (ledger.left - 1) // 2))
    offset_G = np.zeros(task.length)
    probed = np.argsort(shares)[::-1][:count]
    moved_NG = np.repeat(np.eye(task.length)[probed], 2, axis=0)
    moved_NG[0::2] *= STEP
    moved_NG[1::2] *= -STEP
    outcomes = ledger.measure(task.beside(offset.tolist()) for offset in moved_NG)
    for number, more, less in zip(probed, outcomes[0::2], outcomes[1::2], strict=True):
        offset_G[number] = _vertex(middle, more, less)
    scaled = (np.clip(scale * offset_G, -1, 1).tolist() for scale in (1.0, 0.5, 1.5))
    ledger.measure(map(task.beside, scaled))


def _vertex(middle: Outcome, more: Outcome, less: Outcome) -> float:
    """Offset at the top of the parabola, at most three steps away."""
    slope = (more.reward - less.reward) / 2
    bend = 2 * middle.reward - more.reward - less.reward
    reach = 3.0 * abs(slope)
    return (
        STEP * float(np.clip(slope / max(bend, abs(slope) / 3.0, 1e-12), -3, 3)) if reach else 0.0
    )


def best_prior(ledger: Ledger) -> Path:
    """Measure the plans of all free paths and return the best one's path.

    With fewer than a dozen evaluations only the uniform and the predicted one are tried.
    """
    return chosen_prior(ledger)[1]


def chosen_prior(ledger: Ledger) -> tuple[str, Path]:
    """The same with its name in `PATHS`."""
    task = ledger.task
    names = list(PATHS) if ledger.left >= 12 else list(PATHS)[:2]
    found: dict[Kept, tuple[str, Path]] = {}
    for name in names[: max(1, int(ledger.left))]:
        path = PATHS[name](task)
        found.setdefault(plan_of(task, path), (name, path))
    return found[best_of(ledger.measure(found)).kept]
