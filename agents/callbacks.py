"""Any search in TensorBoard: a listener of the ledger, so no searcher knows of it.

The step is the number of the evaluation. Baselines are runs of their own (`baseline_<name>`) with
the same tags, which makes them horizontal lines in the charts of the agent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from prune_env import Ledger, PruningTask, format_groups
from prune_env.errors import RunError
from prune_env.mdp.render import bars
from prune_env.mdp.rewards import Outcome

PICTURES = 10
"""How often pictures are drawn in the course of a search."""


class TensorBoardLog:
    """Writes a search to `folder` as it goes: give the object to `run_search(on_outcome=...)`.

    A resumed search is replayed from its first evaluation, so the first call removes the event
    files of an earlier log: nothing is ever doubled.

    Args:
        folder: of the event files; made at the first evaluation.
        task: what is searched.
        baselines: outcomes to compare with, drawn as constant lines.
        hparams: settings of the run, for the text and the table of hyperparameters.
        every: evaluations from picture to picture; by default ten pictures per search.
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
        self._pictured: Outcome | None = None
        self._history: Sequence[Outcome] = ()
        self._tags = sparsity_tags(task)

    def __call__(self, ledger: Ledger, outcome: Outcome) -> None:
        """Log one evaluation; the signature of a ledger's listener.

        Raises:
            RunError: the folder cannot be written.
        """
        if self._writer is None:
            self._writer = self._begin(ledger)
        step, self._history = ledger.spent, ledger.history
        for tag, value in scalars(outcome, ledger.best).items():
            self._writer.add_scalar(tag, value, step)
        for tag, kept, group in zip(self._tags, outcome.kept, self.task.groups, strict=True):
            self._writer.add_scalar(tag, 1 - kept / group.units, step)
        for name, value in ledger.figures.items():
            self._writer.add_scalar(f"training/{name}", value, step)
        ledger.figures.clear()
        every = self._every or max(1, ledger.limit // PICTURES)
        if step % every == 0:
            self._draw(self._writer, ledger.best, step)

    def close(self) -> None:
        """Write the last pictures and the hyperparameters with the final figures."""
        if self._writer is None:
            return
        best = max(self._history, key=lambda outcome: outcome.reward)
        self._draw(self._writer, best, len(self._history))
        final = {f"final/{tag.partition('/')[2]}": v for tag, v in scalars(best, best).items()}
        for summary in hparams_summaries(_plain(self.hparams), final):
            self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
        for tag, value in final.items():
            self._writer.add_scalar(tag, value, len(self._history))
        self._writer.close()
        self._writer = None

    def _begin(self, ledger: Ledger) -> SummaryWriter:
        writer = _fresh_writer(self.folder)
        groups = [*self.task.groups, *self.task.frozen]
        table = format_groups(groups, self.task.costs)
        writer.add_text("model", f"```\n{table}\n```", 0)
        writer.add_text("config", f"```\n{json.dumps(_plain(self.hparams), indent=1)}\n```", 0)
        terms = sorted(ledger.history[-1].terms)
        writer.add_custom_scalars(layout(terms, self._tags))
        for name, outcome in self.baselines.items():
            line = _fresh_writer(self.folder / f"baseline_{_tag(name)}")
            for step in (1, max(2, ledger.limit)):
                for tag, value in scalars(outcome, outcome).items():
                    line.add_scalar(tag, value, step)
            line.close()
        return writer

    def _draw(self, writer: SummaryWriter, best: Outcome, step: int) -> None:
        from agents.figures import scatter  # matplotlib takes its time

        picture = scatter(self.task, self._history, self.baselines)
        writer.add_image("search/quality_over_cost", picture, step, dataformats="HWC")
        if best is not self._pictured:
            image = bars(self.task, best.kept)
            writer.add_image("search/best_plan", image, step, dataformats="HWC")
            self._pictured = best


def scalars(outcome: Outcome, best: Outcome) -> dict[str, float]:
    """The curves of one evaluation, by tag."""
    return {
        "quality/accuracy": outcome.metrics.accuracy,
        "quality/kl": outcome.metrics.kl,
        "quality/loss": outcome.metrics.loss,
        "cost/flops_ratio": outcome.flops_ratio,
        "cost/params_ratio": outcome.params_ratio,
        "reward/total": outcome.reward,
        **{f"reward/{_tag(name)}": value for name, value in outcome.terms.items()},
        "best/reward": best.reward,
        "best/accuracy": best.metrics.accuracy,
        "best/kl": best.metrics.kl,
    }


def sparsity_tags(task: PruningTask) -> list[str]:
    """A tag per group; the number keeps TensorBoard's alphabet in layer order."""
    return [f"sparsity/{n:03d}_{_tag(group.name)}" for n, group in enumerate(task.groups)]


def layout(terms: Sequence[str], sparsities: Sequence[str]) -> dict[str, Any]:
    """Charts of the custom scalars tab; tags are regular expressions there."""

    def chart(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]

    rewards = ["reward/total", *(f"reward/{_tag(term)}" for term in terms)]
    return {
        "search": {
            "best reward": chart("best/reward"),
            "best accuracy": chart("best/accuracy"),
            "best KL": chart("best/kl"),
        },
        "evaluations": {
            "accuracy": chart("quality/accuracy"),
            "KL to the dense network": chart("quality/kl"),
            "reward, term by term": chart(*rewards),
            "cost left": chart("cost/flops_ratio", "cost/params_ratio"),
        },
        "plan": {"sparsity per group": chart(*sparsities)},
    }


def _tag(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


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
