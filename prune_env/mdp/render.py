"""Pictures of a plan in the making: a table for terminals, bars for videos and TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from prune_env.mdp.task import PruningTask

INK, PAPER, DENSE, KEPT, NEXT = "#222222", "#ffffff", "#e3e6ea", "#2f6fb0", "#e0912f"


def table(task: PruningTask, kept: Sequence[int]) -> str:
    """One line per group: units kept of all, as a bar; then the cost so far."""
    width = max(len(group.name) for group in task.groups)
    lines = []
    for number, group in enumerate(task.groups):
        if number < len(kept):
            keep = kept[number] / group.units
            bar = "#" * round(20 * keep)
            state = f"{bar:<20} {kept[number]:>5}/{group.units:<5} sparsity {1 - keep:5.1%}"
        else:
            state = "<- next" if number == len(kept) else ""
        lines.append(f"{group.name:<{width}}  {state}".rstrip())
    lines.append(f"{task.on} left {_ratio(task, kept):.1%}, budget {task.budget:.1%}")
    return "\n".join(lines)


def _ratio(task: PruningTask, kept: Sequence[int]) -> float:
    whole = [*kept, *(group.units for group in task.groups[len(kept) :])]
    return float(task.costs.ratio(whole, task.on))


def bars(task: PruningTask, kept: Sequence[int]) -> NDArray[np.uint8]:
    """Horizontal bars, one per group: dense in grey, kept in blue. Shape (H, W, 3), uint8."""
    font = ImageFont.load_default(13)
    row, top = 20, 34
    label = max(font.getlength(group.name) for group in task.groups)
    left, length = int(label) + 18, 300
    # Even sizes: most video encoders refuse odd ones.
    size = ((left + length + 92) // 2 * 2, (top + row * task.length + 10) // 2 * 2)
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    title = f"{task.on} left {_ratio(task, kept):.1%} (budget {task.budget:.1%})"
    draw.text((10, 9), title, INK, font)
    for number, group in enumerate(task.groups):
        y = top + row * number
        draw.text((10, y + 1), group.name, INK, font)
        draw.rectangle((left, y + 3, left + length, y + row - 4), DENSE)
        if number < len(kept):
            keep = kept[number] / group.units
            draw.rectangle((left, y + 3, left + round(length * keep), y + row - 4), KEPT)
            text = f"{kept[number]}/{group.units}"
            draw.text((left + length + 8, y + 1), text, INK, font)
        elif number == len(kept):
            draw.rectangle((left, y + 3, left + length, y + row - 4), outline=NEXT, width=2)
    return np.asarray(image)
