"""Printing for the command line: lines, tables, bars and exit codes."""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_PIPE_WIDTH = 500  # in a pipe or a file nothing is folded


@cache
def console(stderr: bool = False) -> Console:
    """The console on standard output, or on standard error."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = _PIPE_WIDTH
    return found


def _printable(text: str) -> str:
    """Text whose brackets are no markup; names in other encodings than UTF-8 as escapes."""
    return escape(text.encode(errors="backslashreplace").decode())


def print_error(message: str) -> None:
    """Print one line on standard error."""
    console(stderr=True).print(f"[bold red]protofast:[/] {_printable(message)}")


def print_warning(message: str) -> None:
    """Print one line on standard error that is no reason to stop."""
    console(stderr=True).print(f"[yellow]protofast: warning:[/] {_printable(message)}")


def print_note(message: str) -> None:
    """Print one plain line on standard output."""
    console().print(_printable(message))


def print_path(what: str, path: Path) -> None:
    """Print where something was written."""
    print_note(f"{what}: {path.resolve()}")


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a title and a small table; all columns but the first are aligned to the right.

    Args:
        title: A line above the table.
        columns: Headings; all empty for a table without.
        rows: A cell for each column.
    """
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for position, column in enumerate(columns):
        table.add_column(
            _printable(column), justify="left" if position == 0 else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*(_printable(cell) for cell in row))
    print_note(title)
    console().print(table, soft_wrap=False)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, nothing elsewhere; call it with what is done, how much, of how much."""
    bars = Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(),
        transient=True,
        disable=not console().is_terminal,
    )
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, visible=done < total)

    with bars:
        yield report


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
