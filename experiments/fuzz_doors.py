"""Every place where input comes in, by name."""

from __future__ import annotations

from experiments.fuzz_files import FILES
from experiments.fuzz_inputs import Attempt, Door
from experiments.fuzz_values import VALUES

__all__ = ["DOORS", "Attempt", "Door"]

DOORS: dict[str, Door] = {door.name: door for door in (*VALUES, *FILES)}
"""Add a kind of input to `VALUES` or `FILES`."""
