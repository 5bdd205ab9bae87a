"""How each searcher looks in figures and tables: the same colour and marker on every page."""

from __future__ import annotations

import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """A colour (told apart with any colour vision), and a marker for prints without colour."""

    colour: str
    marker: str


DENSE = Style("#333333", "*")

STYLES = {
    "uniform": Style("#e69f00", "s"),
    "global": Style("#009e73", "D"),
    "random": Style("#8c8c8c", "o"),
    "evolution": Style("#cc79a7", "v"),
    "evolution_uniform": Style("#f0b6d5", "v"),
    "sensitivity": Style("#a6761d", "h"),
    "sensitivity_measured": Style("#5e3f0a", "H"),
    "probe": Style("#44aa99", "p"),
    "owl": Style("#9fc95e", "8"),
    "tpe": Style("#117733", "D"),
    "cmaes": Style("#aa4499", "s"),
    "ppo": Style("#0072b2", "^"),
    "ppo_plan": Style("#00314f", "^"),
    "a2c": Style("#56b4e9", "<"),
    "sac": Style("#d55e00", ">"),
    "td3": Style("#882255", "P"),
    "ddpg": Style("#332288", "X"),
    "tqc": Style("#999933", "d"),
}
"""Searcher -> style. The first are the Okabe-Ito palette; others take one of `SPARE`."""

SPARE = (
    Style("#6699cc", "p"),
    Style("#661100", "H"),
    Style("#7d6bb0", "8"),
    Style("#c2185b", "s"),
    Style("#607d3b", "D"),
)


def style_of(name: str) -> Style:
    """The style of a searcher; one that `STYLES` does not know always gets the same spare one."""
    return STYLES.get(name) or SPARE[zlib.crc32(name.encode()) % len(SPARE)]
