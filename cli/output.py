"""What commands print: text that is safe for a terminal, tables, JSON and progress bars."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FILE_WIDTH = 1000
"""Columns where output is not a terminal: tables in files and pipes are never cut."""

MULTILINGUAL = "The built-in model is for English; index with a multilingual one: --model FOLDER or a hub id"


def clean(text: str) -> str:
    """Escape visibly what could control a terminal: control characters, bidi overrides and undecodable bytes."""
    return _UNSAFE.sub(_escape, text.replace("\r\n", "\n"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def say(text: str = "") -> None:
    """Print to standard output."""
    click.echo(clean(text))


def note(text: str) -> None:
    """Print to standard error: progress, and what the user should know besides the data."""
    click.echo(clean(text), err=True)


def count(number: int, noun: str) -> str:
    """1, "row" -> "1 row"; 1200, "query" -> "1,200 queries"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def readable_bytes(number: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def shorten(text: str, width: int) -> str:
    """Text on one line, cut to `width` terminal columns: at a space if there is one in the second half."""
    from rich.cells import cell_len, set_cell_size

    text = clean(" ".join(text.split()))
    if cell_len(text) <= width:
        return text
    text = set_cell_size(text, width - 2)
    return text[: max(text.rfind(" ", len(text) // 2), 0) or None].rstrip() + " …"


def console() -> Console:
    """A terminal at its own width; anything else as wide as tables need."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=_FILE_WIDTH)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str] | None], *, left: int = 1, last_left: bool = False
) -> None:
    """Print rows under a header; None in place of a row draws a line.

    Args:
        columns: Their names.
        rows: A cell for each column.
        left: So many columns are left-aligned, the others right-aligned.
        last_left: So is the last column.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(
            Text(clean(name)),
            justify="left" if number < left or (last_left and number == len(columns) - 1) else "right",
            no_wrap=True,
        )
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*(Text(clean(cell)) for cell in row))
    console().print(table)


def print_json(content: Any, *, indent: int | None = 1) -> None:
    """Print JSON; on one line if `indent` is None. What could control a terminal is escaped as JSON does."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    text = json.dumps(content, indent=indent, ensure_ascii=not utf8, default=str)
    click.echo(_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def write_json(file: Path, content: Any) -> None:
    """Write JSON to a file, in a folder that is created if needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    file.write_text(text + "\n", encoding="utf-8")


def progress_bar(*columns: ProgressColumn | str, smoothing: float = 30.0) -> Progress:
    """A progress bar on standard error if that is a terminal; otherwise one that shows nothing."""
    from rich.console import Console
    from rich.progress import Progress

    terminal = Console(stderr=True)
    return Progress(*columns, console=terminal, disable=not terminal.is_terminal, speed_estimate_period=smoothing)
