"""Any search in TensorBoard: a listener of the ledger, so no searcher knows of it.

The step is the number of the measured plan. Every searcher is one run, and so is the dense network
(`log_dense`). What ends early goes on as a horizontal line to the last evaluation it might have
had, so baselines that measure one plan are lines in the charts of the agent beside them.

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
        baselines: outcomes to compare with, drawn in the pictures.
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
        values |= {f"train/{name}": value for name, value in ledger.figures.items()}
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
        if last != self._drawn:
            self._draw(self._writer, last)
        if self._pictured is not None:
            figures = curves.final(self.task.objective, self._pictured)
            for summary in hparams_summaries(_plain(self.hparams), figures):
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
            for tag, value in figures.items():
                self._writer.add_scalar(tag, value, last)
            if last < self._limit:
                quality, found = self.task.objective, self._pictured
                _draw_line(
                    self._writer,
                    curves.scalars(quality, found) | curves.best(quality, found),
                    [self._limit],
                )
        self._writer.close()
        self._writer = None

    def _candidate(self, outcome: Outcome) -> dict[str, float]:
        pairs = zip(self._tags, outcome.kept, self.task.groups, strict=True)
        plan = {tag: 1 - kept / group.units for tag, kept, group in pairs}
        return curves.scalars(self.task.objective, outcome) | plan

    def _begin(self, ledger: Ledger) -> SummaryWriter:
        writer = _fresh_writer(self.folder)
        self._limit = int(ledger.limit)
        groups = [*self.task.groups, *self.task.frozen]
        table = format_groups(groups, self.task.costs)
        writer.add_text("model", f"```\n{table}\n```", 0)
        writer.add_text("config", f"```\n{json.dumps(_plain(self.hparams), indent=1)}\n```", 0)
        writer.add_custom_scalars(
            curves.charts(self.task.objective, ledger.history[-1].terms, self._tags)
        )
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


def log_dense(folder: str | Path, task: PruningTask, evaluations: int) -> None:
    """The dense network as a run of its own: a line from the first evaluation to the last.

    Raises:
        RunError: the folder cannot be written.
    """
    if task.dense is None:
        return
    with _fresh_writer(Path(folder)) as line:
        _draw_line(line, curves.dense(task.objective, task.dense), [1, max(2, evaluations)])


def log_test(folder: str | Path, figures: Mapping[str, float | None], step: int) -> None:
    """What was measured on test in the end, in the run of the search that it came from.

    Args:
        folder: of the search's log.
        figures: by name; those that are None are left out.
        step: of the search's last evaluation.

    Raises:
        RunError: the folder cannot be written.
    """
    with _fresh_writer(Path(folder), ".test") as writer:
        known = {f"test/{name}": value for name, value in figures.items() if value is not None}
        _draw_line(writer, known, [step])


def _draw_line(line: SummaryWriter, values: Mapping[str, float], steps: Iterable[int]) -> None:
    for step in steps:
        for tag, value in values.items():
            line.add_scalar(tag, value, step)


def _plain(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Values as the hyperparameter plugin takes them; anything else as text."""
    simple = (bool, int, float, str)
    return {k: v if isinstance(v, simple) else str(v) for k, v in values.items()}


def _fresh_writer(folder: Path, suffix: str = "") -> SummaryWriter:
    """A writer into files that end in `suffix`, in place of those that did."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"events.out.tfevents.*{suffix}"):
            old.unlink()
        return SummaryWriter(str(folder), filename_suffix=suffix)
    except OSError as error:
        raise RunError(
            f"cannot log to '{folder}': {error.strerror or error}. Choose a folder you may write "
            "to, or log nothing."
        ) from error
