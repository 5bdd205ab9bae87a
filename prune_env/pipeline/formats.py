"""Numbers as a reader wants them; what is missing is a dash."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"


def number(value: Any) -> float:
    """`value` as a finite float, NaN where there is none: NaN is not drawn."""
    return float(value) if value is not None and math.isfinite(value) else math.nan


def _present(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _absent(value: Any) -> str:
    return MISSING if value is None else str(float(value))  # nan and inf are shown, not hidden


def percent(value: Any, digits: int = 2) -> str:
    """0.8412 -> '84.12 %'."""
    return f"{100 * value:.{digits}f} %" if _present(value) else _absent(value)


def points(value: Any, signed: bool = True) -> str:
    """A difference of fractions in percentage points: -0.012 -> '−1.20 points'."""
    if not _present(value):
        return _absent(value)
    return f"{100 * value:{'+' if signed else ''}.2f} points".replace("-", "−")


def scaled(value: Any, unit: str = "") -> str:
    """Four digits and a prefix: 40813184 -> '40.81 M', 1.2e3 with 'B' -> '1.200 kB'."""
    if not _present(value):
        return _absent(value)
    prefixes = ["", "k", "M", "G", "T", "P"]
    power = min(int(math.log10(abs(value)) // 3) if abs(value) >= 1 else 0, len(prefixes) - 1)
    scale = value / 1000**power
    digits = 0 if power == 0 else max(0, 4 - len(str(int(abs(scale)))))
    return f"{scale:.{digits}f} {prefixes[power]}{unit}".strip()


def plain(value: Any, digits: int = 4) -> str:
    """A bare number."""
    return f"{value:.{digits}f}".replace("-", "−") if _present(value) else _absent(value)


def milliseconds(value: Any) -> str:
    """Three significant digits: 12.345 -> '12.3', 0.01234 -> '0.0123'."""
    if not _present(value):
        return _absent(value)
    digits = 2 if value == 0 else min(4, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f}"


def count(value: Any) -> str:
    """A number of things, or of parts of them: 1,234 or 12.3."""
    if not _present(value):
        return MISSING
    return f"{round(value, 1):,g}" if value < 1e5 else f"{value:,.0f}"


def duration(seconds: Any) -> str:
    """0.42 -> '0.42 s', 200 -> '3 min 20 s', 5000 -> '1 h 23 min'."""
    if not _present(seconds):
        return _absent(seconds)
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def setting(value: Any) -> str:
    """A configuration value in words."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


def cost_name(metric: str) -> str:
    """A cost as it is written in a sentence."""
    return {"macs": "MACs", "params": "parameters"}.get(metric, metric)
