"""A comparison in TensorBoard: a run per searcher and budget, and its front over the budgets.

`best/kl` and `best/reward` stand over the evaluations charged (medians over seeds), `front/kl` over
a thousand times the budget, since steps are whole numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from prune_env.errors import RunError
from prune_env.experiments.report.cells import curves_by_searcher
from prune_env.experiments.report.curves import Curve

Cells = Sequence[Mapping[str, Any]]

POINTS = 200
"""Points of a curve at most."""
LAYOUT = {
    "comparison": {
        "best KL over evaluations": ["Multiline", ["^best/kl$"]],
        "best reward over evaluations": ["Multiline", ["^best/reward$"]],
        "KL over 1000 x budget": ["Multiline", ["^front/kl$"]],
    }
}
"""Of the custom scalars tab; tags are regular expressions there."""


def write_boards(cells: Cells, folder: Path) -> None:
    """Write the event files of a comparison; those of an earlier call are removed.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        for old in folder.rglob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(str(folder)) as writer:
            writer.add_custom_scalars(LAYOUT)
        for name in dict.fromkeys(run["searcher"] for cell in cells for run in cell["runs"]):
            _write_searcher(cells, name, folder / name.replace(":", "."))
    except OSError as error:
        raise RunError(
            f"cannot log to '{folder}': {error.strerror or error}. Choose a folder you may write "
            "to."
        ) from error


def _write_searcher(cells: Cells, name: str, folder: Path) -> None:
    with SummaryWriter(str(folder)) as front:
        for cell in sorted(cells, key=lambda cell: float(cell["budget"])):
            curves = curves_by_searcher(cell).get(name, [])
            if not curves:
                continue
            kl = float(np.median([curve.kl[-1] for curve in curves]))
            front.add_scalar("front/kl", kl, round(1000 * cell["budget"]))
            with SummaryWriter(str(folder / f"b{cell['budget']:g}")) as writer:
                _write_curves(writer, curves, cell["evaluations"])


def _write_curves(writer: SummaryWriter, curves: Sequence[Curve], evaluations: int) -> None:
    """From where every seed has a plan."""
    first = int(np.ceil(max(float(curve.charged[0]) for curve in curves) - 1e-9))
    last = max(first, evaluations)
    for step in np.unique(np.linspace(max(1, first), last, POINTS).round()).astype(int).tolist():
        kl = np.median([curve.at(step) for curve in curves])
        reward = np.median([curve.reward_at(step) for curve in curves])
        writer.add_scalar("best/kl", float(kl), step)
        writer.add_scalar("best/reward", float(reward), step)
