"""Tasks by name, so that an environment can be made from JSON-able arguments.

A task factory is a function that takes `TaskOptions` as keywords and returns a `PruningTask`. Names
map to "module:function" and are imported when asked for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from prune_env.checks import refuse
from prune_env.errors import ConfigError
from prune_env.mdp.task import PruningTask

TaskFactory = Callable[..., PruningTask]

TASKS: dict[str, str | TaskFactory] = {
    "digits": "prune_env.tasks.builtin:digits",
    "toy": "prune_env.testing:toy_task",
}


def register_task(name: str, factory: str | TaskFactory) -> None:
    """Make `factory`, a function or "module:function", available as `name`.

    Raises:
        ConfigError: the name is taken by another factory.
    """
    if TASKS.get(name, factory) != factory:
        raise ConfigError(f"a task '{name}' is registered already. Choose another name.")
    TASKS[name] = factory


def make_task(name: str, **options: Any) -> PruningTask:
    """The task called `name`: a registered name, or "package.module:function".

    Raises:
        ConfigError: there is no such task, its module cannot be imported, or it is no factory.
    """
    task = resolve_factory(name)(**options)
    if not isinstance(task, PruningTask):
        raise ConfigError(f"task '{name}' returned a {type(task).__name__}, not a PruningTask.")
    return task


def resolve_factory(name: str) -> TaskFactory:
    """The function behind a registered name or "package.module:function".

    Raises:
        ConfigError: there is no such function.
    """
    if not isinstance(name, str):
        refuse("the task", name, "a registered name, or 'package.module:function'")
    target = TASKS.get(name, name)
    return _import(target) if isinstance(target, str) else target


def _import(target: str) -> TaskFactory:
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        near = difflib.get_close_matches(target, TASKS, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Registered: {', '.join(TASKS)}."
        raise ConfigError(f"there is no task '{target}'. {hint} Or give 'package.module:function'.")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"task '{target}' cannot be imported: {error}. Is the package installed, or the "
            "current folder on PYTHONPATH?"
        ) from error
    if not callable(factory):
        raise ConfigError(f"task '{target}' is a {type(factory).__name__}, not a function.")
    return factory  # type: ignore[no-any-return]
