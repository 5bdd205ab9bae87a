"""What can be wrong with a command, found before it does any work or makes any folder.

Names come first, then files; what must fit a network is checked on it untrained, see `trained`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prune_env.errors import ConfigError, ModelError, RunError
from prune_env.experiments.config.compare import CompareConfig
from prune_env.experiments.config.run import RunConfig
from prune_env.experiments.networks.models import model_named
from prune_env.experiments.networks.presets import PRESETS
from prune_env.experiments.networks.pretrained import is_pretrained
from prune_env.experiments.stages.directory import run_folder
from prune_env.experiments.stages.policies import continuing, require_agent
from prune_env.mdp.candidates import TaskOptions
from prune_env.mdp.registry import resolve_factory
from prune_env.search.searchers import SEARCHERS, searcher_named


def check_names(searchers: Iterable[str], task: str, options: Mapping[str, Any]) -> None:
    """Check the names of searchers, of a task if there is one, and of what its options choose.

    Raises:
        PruneEnvError: one is unknown or out of range; says the nearest, or what there is.
    """
    TaskOptions.of(options)
    if task and task not in PRESETS:
        resolve_factory(task)
    names = [*dict.fromkeys(searchers)]
    for name in sorted(names, key=SEARCHERS.__contains__):  # what is not ours is wrong most often
        searcher_named(name)


def check_policy(path: str) -> None:
    """Check that the file of a policy is there, if one is named.

    Raises:
        ConfigError: it is not.
    """
    if path and not Path(path).expanduser().is_file():
        raise ConfigError(f"there is no policy '{path}'. Give the file that a search left.")


def check_folder(folder: Path) -> None:
    """Check that a folder, which may not be there yet, can be written.

    Raises:
        RunError: it cannot.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise RunError(f"cannot write '{folder}'. Choose a folder you may write to.")


def check_run(config: RunConfig) -> None:
    """Check all that a run names.

    Raises:
        PruneEnvError: says what is wrong, and the cure.
    """
    check_names((config.searcher, *config.baselines), config.task, config.task_options)
    if not config.task and not is_pretrained(config.model):
        model_named(config.model)
    if config.weights and not Path(config.weights).expanduser().is_file():
        raise ModelError(
            f"no weights file '{config.weights}'. Give a .safetensors or a torch.save file."
        )
    check_policy(config.init_policy)
    continuing(config.searcher, config.init_policy)
    check_folder(config.runs)
    run_folder(config)


def check_comparison(config: CompareConfig, *agents: str) -> None:
    """Check all that a comparison names; `agents` are those beside its searchers.

    Raises:
        PruneEnvError: says what is wrong, and the cure.
    """
    others = [name for name in config.searchers if name not in SEARCHERS]
    check_names(
        others, config.task, config.task_options
    )  # ours may lack a package: said on the page
    for name in agents:
        require_agent(name)
    check_policy(config.init_policy)
    check_folder(config.runs)
