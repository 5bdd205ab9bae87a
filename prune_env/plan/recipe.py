"""Recipes: what a network is made with, beside the plan, so that it can be made again."""

from __future__ import annotations

from dataclasses import dataclass

from prune_env.errors import PlanError

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

    def __post_init__(self) -> None:
        if self.calibration_samples < 1 or self.batch_size < 0:
            raise PlanError(
                f"the recipe has {self.calibration_samples} calibration samples in batches of "
                f"{self.batch_size}. At least one sample is needed; 0 chooses a batch size."
            )
