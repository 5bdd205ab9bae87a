"""Every place where input comes in, by name."""

from __future__ import annotations

from prune_env.experiments.benches.fuzz_files import FILES
from prune_env.experiments.benches.fuzz_inputs import Attempt, Door
from prune_env.experiments.benches.fuzz_values import VALUES

__all__ = ["DOORS", "Attempt", "Door"]

DOORS: dict[str, Door] = {door.name: door for door in (*VALUES, *FILES)}
"""Add a kind of input to `VALUES` or `FILES`."""
