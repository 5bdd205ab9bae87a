"""Getting accuracy back after units were removed: fine-tuning, with or without a teacher."""

from prune_env.recovery.epoch import evaluate
from prune_env.recovery.finetune import EpochRecord, FinetuneResult, finetune
from prune_env.recovery.masks import KeepMasks
from prune_env.recovery.schedule import OPTIMIZERS, FinetuneSettings, learning_rate_at

__all__ = [
    "OPTIMIZERS",
    "EpochRecord",
    "FinetuneResult",
    "FinetuneSettings",
    "KeepMasks",
    "evaluate",
    "finetune",
    "learning_rate_at",
]
