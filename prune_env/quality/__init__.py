"""How good a network is: objectives, what measures them, and how networks are run for it."""

from prune_env.quality.evaluators import Metrics
from prune_env.quality.objectives import OBJECTIVES, Figure, Objective

__all__ = ["OBJECTIVES", "Figure", "Metrics", "Objective"]
