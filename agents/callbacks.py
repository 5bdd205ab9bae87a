"""Any search in TensorBoard: a listener of the ledger, so no searcher knows of it.

The step is the number of the measured plan. Baselines are runs of their own (`baseline_<name>`)
with the same tags, which makes them horizontal lines in the charts of the agent.

Only eligible outcomes are candidates. What else a searcher measures to learn from (plans beyond the
budget, or on a part of the samples) has the prefix `probe/` and is in no other curve or picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from prune_env import Ledger, PruningTask, format_groups
from prune_env.agents import curves
from prune_env.errors import RunError
from prune_env.mdp.render import bars
from prune_env.mdp.rewards import Outcome, best_of

PICTURES = 10
"""How often pictures are drawn in the course of a search."""
APART = 5
"""Evaluations between pictures at least: one takes half a second."""


class TensorBoardLog:
    """Writes a search to `folder` as it goes: give the object to `run_search(on_outcome=...)`.

    A resumed search is replayed from its first evaluation, so the first call removes the event
    files of an earlier log: nothing is ever doubled.

    Args:
        folder: of the event files; made at the first evaluation.
        task: what is searched.
        baselines: outcomes to compare with, drawn as constant lines.
        hparams: settings of the run, for the text and the table of hyperparameters.
        every: evaluations from picture to picture; by default ten pictures per search, and five
            evaluations between them at least.
    """

    def __init__(
        self,
        folder: str | Path,
        task: PruningTask,
        baselines: Mapping[str, Outcome] | None = None,
        hparams: Mapping[str, Any] | None = None,
        every: int | None = None,
    ) -> None:
        self.folder, self.task = Path(folder), task
        self.baselines, self.hparams = dict(baselines or {}), dict(hparams or {})
        self._every = every
        self._writer: SummaryWriter | None = None
        self._lines: dict[str, SummaryWriter] = {}
        self._history: Sequence[Outcome] = ()
        self._pictured: Outcome | None = None
        self._limit, self._probed, self._drawn = 0, False, 0
        self._tags = curves.sparsity_tags(task)

    def __call__(self, ledger: Ledger, outcome: Outcome) -> None:
        """Log one evaluation; the signature of a ledger's listener.

        Raises:
            RunError: the folder cannot be written.
        """
        if self._writer is None:
            self._writer = self._begin(ledger)
        writer, step, self._history = self._writer, ledger.spent, ledger.history
        quality = self.task.objective
        values = self._candidate(outcome) if outcome.eligible else curves.probe(quality, outcome)
        values["search/charged"] = ledger.charged
        values |= {f"training/{name}": value for name, value in ledger.figures.items()}
        if ledger.best.eligible:
            values |= curves.best(quality, ledger.best)
        for tag, value in values.items():
            writer.add_scalar(tag, value, step)
        ledger.figures.clear()
        if not outcome.eligible and not self._probed:
            self._probed = True
            writer.add_custom_scalars(
                curves.charts(quality, outcome.terms, self._tags) | curves.probe_charts(quality)
            )
        if step % (self._every or max(APART, ledger.limit // PICTURES)) == 0:
            self._draw(writer, step)

    def close(self) -> None:
        """Write the last pictures and the hyperparameters with the final figures."""
        if self._writer is None:
            return
        last = len(self._history)
        for name, line in self._lines.items():
            if last > self._limit:  # glimpses charge less than an evaluation
                _draw_line(line, self._baseline(name), [last])
            line.close()
        if last != self._drawn:
            self._draw(self._writer, last)
        if self._pictured is not None:
            figures = curves.final(self.task.objective, self._pictured)
            for summary in hparams_summaries(_plain(self.hparams), figures):
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
            for tag, value in figures.items():
                self._writer.add_scalar(tag, value, last)
        self._writer.close()
        self._writer, self._lines = None, {}

    def _candidate(self, outcome: Outcome) -> dict[str, float]:
        pairs = zip(self._tags, outcome.kept, self.task.groups, strict=True)
        plan = {tag: 1 - kept / group.units for tag, kept, group in pairs}
        return curves.scalars(self.task.objective, outcome) | plan

    def _baseline(self, name: str) -> dict[str, float]:
        quality, outcome = self.task.objective, self.baselines[name]
        return curves.scalars(quality, outcome) | curves.best(quality, outcome)

    def _begin(self, ledger: Ledger) -> SummaryWriter:
        writer = _fresh_writer(self.folder)
        self._limit = max(2, ledger.limit)
        groups = [*self.task.groups, *self.task.frozen]
        table = format_groups(groups, self.task.costs)
        writer.add_text("model", f"```\n{table}\n```", 0)
        writer.add_text("config", f"```\n{json.dumps(_plain(self.hparams), indent=1)}\n```", 0)
        writer.add_custom_scalars(
            curves.charts(self.task.objective, ledger.history[-1].terms, self._tags)
        )
        for name in self.baselines:
            line = self._lines[name] = _fresh_writer(
                self.folder / f"baseline_{curves.plain_tag(name)}"
            )
            _draw_line(line, self._baseline(name), [1, self._limit])
            line.flush()  # a search that is killed keeps its lines
        return writer

    def _draw(self, writer: SummaryWriter, step: int) -> None:
        from prune_env.agents.figures import front, plans, scatter  # matplotlib takes its time

        self._drawn = step
        candidates = [outcome for outcome in self._history if outcome.eligible]
        if not candidates:
            return
        drawn = {"quality_over_cost": scatter, "front": front, "plans": plans}
        for name, picture in drawn.items() if len(candidates) > 1 else ():
            image = picture(self.task, candidates, self.baselines)
            writer.add_image(f"search/{name}", image, step, dataformats="HWC")
        found = best_of(candidates)
        if found is not self._pictured:
            image = bars(self.task, found.kept)
            writer.add_image("search/best_plan", image, step, dataformats="HWC")
            self._pictured = found


def _draw_line(line: SummaryWriter, values: Mapping[str, float], steps: Iterable[int]) -> None:
    for step in steps:
        for tag, value in values.items():
            line.add_scalar(tag, value, step)


def _plain(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Values as the hyperparameter plugin takes them; anything else as text."""
    simple = (bool, int, float, str)
    return {k: v if isinstance(v, simple) else str(v) for k, v in values.items()}


def _fresh_writer(folder: Path) -> SummaryWriter:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        return SummaryWriter(str(folder))
    except OSError as error:
        raise RunError(
            f"cannot log to '{folder}': {error.strerror or error}. Choose a folder you may write "
            "to, or log nothing."
        ) from error
