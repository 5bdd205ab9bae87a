"""Every error that prune_env raises on bad input, in one family, and the lookup that raises one.

A message says what is wrong, where, what was found, and the cure. Catch `PruneEnvError` for all.
"""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class PruneEnvError(Exception):
    """Something the user gave cannot be used; the message names it and the cure."""


class GroupError(PruneEnvError):
    """A group, an axis, or an option that names groups does not fit the model."""


class PlanError(PruneEnvError):
    """A pruning plan is malformed or was made for another model."""


class BudgetError(PruneEnvError):
    """A budget is out of range or cannot be reached."""


class DataError(PruneEnvError):
    """A data set or loader is empty, malformed, or of the wrong shape."""


class ModelError(PruneEnvError):
    """A model cannot be run, or holds or produces NaN or infinite values."""


class ConfigError(PruneEnvError):
    """An option of an experiment or a task is unknown or out of range."""


class RunError(PruneEnvError):
    """A run directory cannot be used."""


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of `table` called `name`.

    Raises:
        ConfigError: there is none; lists what there is.
    """
    if name not in table:
        raise ConfigError(f"there is no {kind} '{name}'. Choose one of {', '.join(table)}.")
    return table[name]
