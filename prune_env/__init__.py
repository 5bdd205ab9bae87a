"""A Gymnasium environment that learns how much of every layer of a network to prune."""

from prune_env.deploy.bundle import load, save
from prune_env.errors import PruneEnvError
from prune_env.mdp.env import PruneEnv
from prune_env.mdp.ledger import Ledger
from prune_env.mdp.registry import make_task, register_task
from prune_env.mdp.task import PruningTask
from prune_env.measure.costs import CostModel
from prune_env.measure.table import format_groups
from prune_env.recovery.finetune import FinetuneSettings, finetune
from prune_env.recovery.masks import KeepMasks
from prune_env.structure.discover import find_groups
from prune_env.surgery.apply import compact, masked
from prune_env.surgery.delivery import apply
from prune_env.surgery.plan import PruningPlan
from prune_env.surgery.repair import reestimate_batchnorm

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

__version__ = "0.1.0"
