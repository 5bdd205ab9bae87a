"""Recipes: what a network is made with, beside the plan, so that it can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

CALIBRATION_SAMPLES = 500
"""Training samples that statistics are of, unless something else is asked for."""


@dataclass(frozen=True)
class Recipe:
    """What `apply` needs beside the kept units to give the network that was measured.

    Attributes:
        repair: a name in `REPAIRS`; None for a repair of one's own, which no file can hold.
        calibration_samples: how many of the first samples of the data it is repaired on.
        batch_size: of them; 0 chooses one.
        seed: of the positions that statistics are drawn from.
        model, data: fingerprints of the dense network and of the samples; empty if not known.
    """

    repair: str | None = "least_squares+batchnorm"
    calibration_samples: int = CALIBRATION_SAMPLES
    batch_size: int = 0
    seed: int = 0
    model: str = ""
    data: str = ""

    @staticmethod
    def of(content: Mapping[str, Any]) -> Recipe:
        """A recipe from its fields, as JSON has them.

        Raises:
            ValueError, TypeError: a field is missing, unknown or of another kind.
        """
        recipe = Recipe(**content)
        kinds = {"repair": str | None, "model": str, "data": str}
        for field in fields(Recipe):
            value = content[field.name]
            if isinstance(value, bool) or not isinstance(value, kinds.get(field.name, int)):
                raise TypeError(f"'{field.name}' of the recipe is {value!r}")
        if recipe.calibration_samples < 1 or recipe.batch_size < 0:
            raise ValueError("the recipe counts samples below zero")
        return recipe
