"""Printing for the command line."""

from functools import cache

from rich.console import Console
from rich.markup import escape
from rich.table import Table

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


@cache
def console(stderr: bool = False) -> Console:
    """The console on standard output, or on standard error."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """Print one line on standard error."""
    console(stderr=True).print(f"[bold red]protofast:[/] {escape(message)}")


def print_note(message: str) -> None:
    """Print one plain line on standard output; brackets in `message` are kept as they are."""
    console().print(escape(message))


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a small table; all columns but the first are aligned to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console().print(table)
