"""A page as data: blocks that read the same as HTML and as Markdown.

Results become blocks once, so `report.html` and `report.md` cannot disagree.
"""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Protocol

from prune_env.storage import write_text

TEMPLATE = Path(__file__).with_name("page.html")


class Block(Protocol):
    """A part of a page."""

    def html(self) -> str: ...

    def markdown(self) -> str: ...


@dataclass(frozen=True)
class Cell:
    """A table cell; `best` marks it, `colour` puts the dot of a figure's series before it."""

    text: str
    note: str = ""
    best: bool = False
    colour: str = ""

    def html(self) -> str:
        """The cell as a td element."""
        dot = f'<i style="background:{escape(self.colour)}"></i>' if self.colour else ""
        note = f" <small>{escape(self.note)}</small>" if self.note else ""
        inner = f"{dot}{escape(self.text)}"
        return f"<td>{f'<b>{inner}</b>' if self.best else inner}{note}</td>"

    def markdown(self) -> str:
        """The cell between two bars."""
        text = markdown_escape(self.text)
        note = f" ({markdown_escape(self.note)})" if self.note else ""
        return (f"**{text}**" if self.best else text) + note

    def plain(self) -> str:
        """The cell on a terminal: the best value carries an asterisk."""
        return self.text + "*" * self.best + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first column names the row, the others are numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def html(self) -> str:
        """A table that scrolls sideways on a narrow screen."""
        header = "".join(f"<th>{escape(column)}</th>" for column in self.columns)
        body = "".join(f"<tr>{''.join(c.html() for c in row)}</tr>\n" for row in self.rows)
        return (
            f'<div class="wide"><table><thead><tr>{header}</tr></thead>'
            f"<tbody>\n{body}</tbody></table></div>"
        )

    def markdown(self) -> str:
        """A GitHub table."""
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [[markdown_escape(c) for c in self.columns], rule]
        lines += [[cell.markdown() for cell in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def plain(self) -> str:
        """Aligned text for a terminal."""
        lines = [list(self.columns), *([cell.plain() for cell in row] for row in self.rows)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(self.columns))]
        aligned = []
        for first, *rest in lines:
            cells = [text.rjust(w) for text, w in zip(rest, widths[1:], strict=True)]
            aligned.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
        return "\n".join(aligned)


@dataclass(frozen=True)
class Heading:
    """Begins a section."""

    text: str

    def html(self) -> str:
        return f"<h2>{escape(self.text)}</h2>"

    def markdown(self) -> str:
        return f"## {markdown_escape(self.text)}"


@dataclass(frozen=True)
class Text:
    """A paragraph; `lead` sets it larger."""

    text: str
    lead: bool = False

    def html(self) -> str:
        kind = ' class="lead"' if self.lead else ""
        return f"<p{kind}>{escape(self.text)}</p>"

    def markdown(self) -> str:
        return markdown_escape(self.text)


@dataclass(frozen=True)
class Code:
    """Something to copy."""

    text: str

    def html(self) -> str:
        # Each word in a box of its own: browsers would break lines inside "--option".
        words = (f"<span>{escape(word)}</span>" for word in self.text.split(" "))
        return f"<pre>{' '.join(words)}</pre>"

    def markdown(self) -> str:
        return textwrap.indent(self.text, "    ")


@dataclass(frozen=True)
class Picture:
    """A figure as SVG: inside the HTML page, in `figures/` beside the Markdown one."""

    name: str
    svg: str
    caption: str

    @property
    def file(self) -> str:
        """Path relative to the page."""
        return f"figures/{self.name}.svg"

    def html(self) -> str:
        data = base64.b64encode(self.svg.encode()).decode()
        image = f'<img alt="{escape(self.caption)}" src="data:image/svg+xml;base64,{data}">'
        return (
            f'<figure><div class="wide">{image}</div>'
            f"<figcaption>{escape(self.caption)}</figcaption></figure>"
        )

    def markdown(self) -> str:
        caption = markdown_escape(self.caption)
        return f"![{caption}]({self.file})\n\n{caption}"


@dataclass(frozen=True)
class Fold:
    """Blocks behind a title that opens them."""

    title: str
    blocks: tuple[Block, ...]
    open: bool = False

    def html(self) -> str:
        inner = "\n".join(block.html() for block in self.blocks)
        state = " open" if self.open else ""
        return f"<details{state}><summary>{escape(self.title)}</summary>\n{inner}\n</details>"

    def markdown(self) -> str:
        return "\n\n".join(block.markdown() for block in (Heading(self.title), *self.blocks))


def markdown_escape(text: str) -> str:
    """`text` shown literally, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~$])", r"\\\1", " ".join(text.split()))


def write_page(folder: Path, name: str, title: str, blocks: Sequence[Block]) -> Path:
    """Write `name.html` and `name.md` with its figures; returns the HTML file.

    Raises:
        RunError: the folder cannot be written.
    """
    write_pictures(blocks, folder)
    body = "\n\n".join(block.markdown() for block in blocks)
    write_text(folder / f"{name}.md", f"# {markdown_escape(title)}\n\n{body}\n")
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title), body="\n".join(block.html() for block in blocks)
    )
    return write_text(folder / f"{name}.html", page)


def write_pictures(blocks: Iterable[Block], folder: Path) -> None:
    """Write the pictures among `blocks` where a Markdown page in `folder` looks for them.

    Raises:
        RunError: the folder cannot be written.
    """
    for block in blocks:
        if isinstance(block, Picture):
            write_text(folder / block.file, block.svg)
