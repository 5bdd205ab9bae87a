"""What every field of `TaskOptions` may be, and what other tools call it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from prune_env.checks import (
    Check,
    among,
    named,
    one_or_by_name,
    real,
    refuse,
    several,
    text,
    text_or_several,
    whole,
)
from prune_env.costs.model import METRICS
from prune_env.criteria.elementwise import Criterion
from prune_env.criteria.scorers import SCORERS
from prune_env.errors import BudgetError, GroupError
from prune_env.mdp.leftover import LEFTOVERS
from prune_env.mdp.rewards import NAMES
from prune_env.quality.choosing import wished
from prune_env.quality.inference import PRECISIONS
from prune_env.quality.outputs import checked
from prune_env.repair.repairs import REPAIRS, Repair
from prune_env.units import require_kinds

AS_IS, TUNED = "as_is", "tuned"
GOALS = (AS_IS, TUNED)
"""What a plan is for: to be used as it is cut and repaired, or to be tuned afterwards."""
_SPARSITY = real("a fraction of the units in [0, 1]", lambda x: 0 <= x <= 1, GroupError)
_BY_NAME = "for all groups, or a dict of values by layer name or glob"


def _units(name: str, value: object) -> None:
    text("kinds of unit as a text, such as 'structured' or 'structured+sublayers'")(name, value)
    require_kinds(str(value))


BUDGET = real("a fraction of the dense cost in (0, 1]", lambda x: 0 < x <= 1, BudgetError)


def _output(name: str, value: object) -> None:
    checked(value)


def _objective(name: str, value: object) -> None:
    wished(value)


def _reward(name: str, value: object) -> None:
    if not (isinstance(value, str) or callable(value)):  # which names there are: `require_reward`
        refuse(name, value, f"one of {', '.join(NAMES)}, or a function of an Outcome")


def _batch(name: str, value: object) -> None:
    if not (value is None or callable(value)):
        refuse(name, value, "a function from what the loader gives to (inputs, targets)")


CHECKS: Mapping[str, Check] = {
    "objective": _objective,
    "output": _output,
    "batch": _batch,
    "budget": BUDGET,
    "on": among(METRICS, f"one of {', '.join(METRICS)}", BudgetError),
    "units": _units,
    "criterion": named(
        SCORERS,
        lambda value: isinstance(value, Criterion),
        f"one of {', '.join(SCORERS)}, or a Criterion",
    ),
    "repair": named(
        REPAIRS,
        lambda value: isinstance(value, Repair),
        f"one of {', '.join(REPAIRS)}, or a Repair",
    ),
    "reward": _reward,
    "leftover": named(LEFTOVERS, lambda value: False, f"one of {', '.join(LEFTOVERS)}"),
    "calibration_samples": whole(1),
    "reward_samples": whole(1),
    "fresh_samples": whole(0),
    "repair_samples": whole(1),
    "goal": among(GOALS, f"one of {', '.join(GOALS)}"),
    "tuned_steps": whole(1),
    "stages": several(whole(1), "numbers of samples, such as (100, 300)"),
    "precision": among(PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "batch_size": whole(0),
    "ignore": text_or_several(
        text("a layer name or glob as a text, such as 'stem.0' or 'stages.0.*'", GroupError),
        "layer names or globs in a list, such as ['stem.0', 'stages.0.*']",
        GroupError,
    ),
    "min_sparsity": one_or_by_name(_SPARSITY, f"a fraction in [0, 1] {_BY_NAME}", GroupError),
    "max_sparsity": one_or_by_name(_SPARSITY, f"a fraction in [0, 1] {_BY_NAME}", GroupError),
    "multiple_of": one_or_by_name(
        whole(1, error=GroupError), f"a whole number {_BY_NAME}", GroupError
    ),
    "seed": whole(0),
}
"""Field -> check. A new option needs an entry."""

ELSEWHERE = {
    "pruning_ratio": "budget, or max_sparsity by layer",
    "ch_sparsity": "budget, or max_sparsity by layer",
    "sparsity": "budget, or min_sparsity and max_sparsity by layer",
    "target_sparsity": "budget",
    "pruning_ratio_dict": "max_sparsity by layer",
    "max_pruning_ratio": "max_sparsity",
    "ignored_layers": "ignore",
    "exclude_layers": "ignore",
    "op_names": "ignore",
    "round_to": "multiple_of",
    "channel_divisor": "multiple_of",
    "importance": "criterion",
    "granularity": "units",
    "flops": "budget, with on='macs'",
    "metric": "objective",
    "evaluator": "objective",
    "criterion_fn": "objective",
    "num_samples": "calibration_samples and reward_samples",
}
"""What other tools call it -> our options."""


def unknown_option(name: str, known: Collection[str]) -> str:
    """What to say of an option that there is not."""
    if name in ELSEWHERE:
        return f"there is no task option '{name}'; here it is {ELSEWHERE[name]}."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else f"choose of {', '.join(known)}."
    return f"there is no task option '{name}'; {hint}"
