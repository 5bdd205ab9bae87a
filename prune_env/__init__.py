"""A Gymnasium environment that learns how much of every layer of a network to prune."""

from importlib import import_module
from typing import TYPE_CHECKING

import gymnasium

from prune_env.version import __version__ as __version__

if TYPE_CHECKING:
    from prune_env.costs.model import CostModel
    from prune_env.costs.table import format_groups
    from prune_env.deploy.bundle import load, save
    from prune_env.errors import PruneEnvError
    from prune_env.mdp.env import PruneEnv
    from prune_env.mdp.registry import make_task, register_task
    from prune_env.mdp.task import PruningTask
    from prune_env.pipeline.compress import compress
    from prune_env.plan.cut import compact, masked
    from prune_env.plan.delivery import apply
    from prune_env.plan.plan import PruningPlan
    from prune_env.recovery.finetune import FinetuneSettings, finetune
    from prune_env.recovery.masks import KeepMasks
    from prune_env.repair.repairs import reestimate_batchnorm
    from prune_env.search.ledger import Ledger
    from prune_env.structure.discover import find_groups

__all__ = [
    "CostModel",
    "FinetuneSettings",
    "KeepMasks",
    "Ledger",
    "PruneEnv",
    "PruneEnvError",
    "PruningPlan",
    "PruningTask",
    "apply",
    "compact",
    "compress",
    "find_groups",
    "finetune",
    "format_groups",
    "load",
    "make_task",
    "masked",
    "reestimate_batchnorm",
    "register_task",
    "save",
]

# Names are imported when they are used: `prune_env run --help` need not wait for torch.
_HOMES = {
    "CostModel": "prune_env.costs.model",
    "FinetuneSettings": "prune_env.recovery.finetune",
    "KeepMasks": "prune_env.recovery.masks",
    "Ledger": "prune_env.search.ledger",
    "PruneEnv": "prune_env.mdp.env",
    "PruneEnvError": "prune_env.errors",
    "PruningPlan": "prune_env.plan.plan",
    "PruningTask": "prune_env.mdp.task",
    "apply": "prune_env.plan.delivery",
    "compact": "prune_env.plan.cut",
    "compress": "prune_env.pipeline.compress",
    "find_groups": "prune_env.structure.discover",
    "finetune": "prune_env.recovery.finetune",
    "format_groups": "prune_env.costs.table",
    "load": "prune_env.deploy.bundle",
    "make_task": "prune_env.mdp.registry",
    "masked": "prune_env.plan.cut",
    "reestimate_batchnorm": "prune_env.repair.repairs",
    "register_task": "prune_env.mdp.registry",
    "save": "prune_env.deploy.bundle",
}

for _name, _one, _many in (
    ("Layerwise", "PruneEnv", "layerwise"),
    ("Plan", "PlanEnv", "plan"),
    ("Discrete", "DiscreteEnv", "discrete"),
):
    gymnasium.register(
        id=f"PruneEnv/{_name}-v0",
        entry_point=f"prune_env.mdp.env:{_one}",
        vector_entry_point=f"prune_env.mdp.vector_wrappers:{_many}",
    )


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'prune_env' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *globals()]
