"""The typer application: its commands, and how errors become one line and an exit code."""

import errno
import os
import sys

import click
import typer

from protofast.cli import demo, evaluate, explain, info, refine, train
from protofast.cli.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    console,
    print_error,
)
from protofast.errors import ProtofastError

app = typer.Typer(
    name="protofast",
    help="Train networks that classify by prototypical parts, and look at what they have learnt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (runs can be resumed).",
)
app.command()(demo.demo)
app.command()(train.train)
app.command()(evaluate.evaluate)
app.command()(refine.project)
app.command()(refine.prune)
app.command()(explain.explain)
app.command()(explain.report)
app.command()(info.info)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    A problem that the user can mend is one line on standard error, never a traceback; set
    PROTOFAST_TRACEBACK=1 to see where it arose.
    """
    try:
        result = app(args=arguments, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as help_page:
        help_page.show()
        return EXIT_USAGE
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        print_error("interrupted")
        return EXIT_INTERRUPTED
    except (ProtofastError, OSError, ImportError) as error:
        if os.environ.get("PROTOFAST_TRACEBACK") == "1":
            console(stderr=True).print_exception()
        print_error(_one_line(error))
        return EXIT_FAILED
    finally:
        sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _one_line(error: Exception) -> str:
    """The error as one line: what went wrong, with which file, and for a full disk what to do."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        line = f"{place}{error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            line += "; free some space and run the command again, what was written before is kept"
        return line
    return " ".join(str(error).split())
