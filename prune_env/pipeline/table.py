"""Dense, cut and tuned side by side, with what is noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prune_env.pipeline.formats import milliseconds, percent, scaled
from prune_env.pipeline.yardstick import Yardstick, yardstick_of

SPREAD = 1.96
"""Standard errors to either side of a figure that hold it in 95 of 100 cases."""


@dataclass(frozen=True)
class Line:
    """A network: its figure of quality with a 95 % interval, and what it costs.

    Attributes:
        network: "dense", "cut" (the plan applied) or "tuned".
        value: the figure of quality.
        low, high: ends of its interval; the value itself where its error is not known.
        macs, params: of the network.
        macs_ratio, params_ratio: what that is of the dense network's.
        latency_ms: median time of a batch; None where it was not measured.
    """

    network: str
    value: float
    low: float
    high: float
    macs: float
    params: float
    macs_ratio: float
    params_ratio: float
    latency_ms: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The lines, dense first; `print` shows them aligned.

    Attributes:
        rows: the networks.
        figure: what their quality is called.
        samples: what it was measured on.
        measured_on: "test", or "val" where there was no test.
        yardstick: how the figure is written.
    """

    rows: tuple[Line, ...]
    figure: str
    samples: int
    measured_on: str
    yardstick: Yardstick

    def __getitem__(self, network: str) -> Line:
        return {row.network: row for row in self.rows}[network]

    def __str__(self) -> str:
        titles = ["", f"{self.figure} on {self.measured_on}", "95 % interval", "MACs", "parameters"]
        timed = any(row.latency_ms is not None for row in self.rows)
        lines = [titles + ["latency, ms"] * timed]
        lines += [self._cells(row) + [milliseconds(row.latency_ms)] * timed for row in self.rows]
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        return "\n".join(
            "  ".join(
                [line[0].ljust(widths[0])]
                + [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
            ).rstrip()
            for line in lines
        )

    def _cells(self, row: Line) -> list[str]:
        show = self.yardstick.show
        between = f"{show(row.low)} to {show(row.high)}" if row.low < row.high else "not known"
        sizes = ((row.macs, row.macs_ratio), (row.params, row.params_ratio))
        return [
            row.network,
            show(row.value),
            between,
            *(f"{scaled(cost)} ({percent(ratio, 1)})" for cost, ratio in sizes),
        ]


def comparison(results: Mapping[str, Any], chosen: str) -> Comparison:
    """The table of one searcher's plan, from the results of a run."""
    yardstick, dense = yardstick_of(results), results["dense"]
    row = next(row for row in results["rows"] if row["name"] == chosen)
    whole = {**dense, "macs_ratio": 1.0, "params_ratio": 1.0}
    lines = [_line("dense", whole, "test", yardstick), _line("cut", row, "before", yardstick)]
    if row.get(yardstick.key("after")) is not None:
        lines.append(_line("tuned", row, "after", yardstick))
    return Comparison(
        tuple(lines), yardstick.name, dense["test_samples"],
        results.get("measured_on", "test"), yardstick,
    )  # fmt: skip


def _line(network: str, facts: Mapping[str, Any], stage: str, yardstick: Yardstick) -> Line:
    value = facts[yardstick.key(stage)]
    error = SPREAD * (facts.get(yardstick.key(f"{stage}_error")) or 0.0)
    error = error if math.isfinite(error) else 0.0
    low, high = value - error, value + error
    if yardstick.as_percent:
        low, high = max(0.0, low), min(1.0, high)
    costs = {name: facts[name] for name in ("macs", "params", "macs_ratio", "params_ratio")}
    # A cut network takes as long as the tuned one, which is the one that was timed.
    timed = (facts.get("latency_ms") or {}).get("median")
    return Line(network, value, low, high, **costs, latency_ms=timed)
