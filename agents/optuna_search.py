"""Black-box optimisers from Optuna: a plan is a point, its reward the value of the point.

The point holds one number in [-1, 1] per group, an offset from the uniform plan's sparsity; 0 is
the uniform plan and is measured first. `PruningTask.decode` shifts every point to the budget.

No storage of Optuna's is used: samplers are deterministic under their seed, so a search that was
killed asks for the same plans again and the ledger answers from its journal.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from prune_env import Ledger
from prune_env.errors import ConfigError

try:
    import cmaes  # noqa: F401  # optuna imports it at the first point only
    import optuna
except ImportError as error:
    raise ConfigError(
        f"the searchers 'tpe' and 'cmaes' need Optuna and cmaes: {error}. "
        "Install them: pip install -e '.[search]'."
    ) from error

REACH = 0.5
"""Largest offset, as a share of the way from the uniform sparsity to the farther of 0 and 1.

Half the way was better than all of it, and a quarter worse, for either sampler on 10 and 25 groups.
"""


def tpe(ledger: Ledger, seed: int) -> None:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), over all groups at once.

    Multivariate: on toys of 10 to 55 groups and on the digits it found better plans than one
    estimator per group, and drew them two to five times as fast.
    """
    with warnings.catch_warnings():  # Optuna 4: multivariate may change
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    _optimise(ledger, sampler)


def cma_es(ledger: Ledger, seed: int) -> None:
    """Covariance matrix adaptation (Hansen & Ostermeier 2001) around the uniform plan."""
    # A task of one group has no covariance: Optuna then draws at random, and need not say so.
    _optimise(ledger, optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False))


def _optimise(ledger: Ledger, sampler: optuna.samplers.BaseSampler) -> None:
    task = ledger.task
    center = task.uniform_sparsity
    room = REACH * max(center, 1.0 - center)
    names = [f"{number:04d}" for number in range(task.length)]  # of groups may hold anything
    span = optuna.distributions.FloatDistribution(-1.0, 1.0)
    space: dict[str, optuna.distributions.BaseDistribution] = dict.fromkeys(names, span)
    with _quiet():
        study = optuna.create_study(sampler=sampler, direction="minimize")
        study.enqueue_trial(dict.fromkeys(names, 0.0))
        while True:  # the ledger ends the search when it is spent
            trial = study.ask(space)
            offsets = [trial.params[name] for name in names]
            asked = [min(max(center + room * offset, 0.0), 1.0) for offset in offsets]
            (outcome,) = ledger.measure([task.decode(asked)])
            study.tell(trial, -outcome.reward)


@contextmanager
def _quiet() -> Iterator[None]:
    """Not a line per point."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
