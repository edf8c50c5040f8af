"""The typer application: its commands, and how errors become one line and an exit code."""

import errno
import functools
import os
from collections.abc import Callable

import typer

from protofast.cli import demo, evaluate, explain, info, refine, train
from protofast.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, console, print_error
from protofast.errors import ProtofastError

app = typer.Typer(
    name="protofast",
    help="Train networks that classify by prototypical parts, and look at what they have learnt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (runs can be resumed).",
)


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """The command, whose errors are one line on standard error and an exit code, never a traceback.

    PROTOFAST_TRACEBACK=1 prints the traceback as well.
    """

    @functools.wraps(command)
    def run(*args: object, **options: object) -> None:
        try:
            code = command(*args, **options)
        except KeyboardInterrupt:
            print_error("interrupted")
            code = EXIT_INTERRUPTED
        except (ProtofastError, OSError, ImportError) as error:
            if os.environ.get("PROTOFAST_TRACEBACK") == "1":
                console(stderr=True).print_exception()
            print_error(one_line(error))
            code = EXIT_FAILED
        if code:
            raise typer.Exit(code)

    return run


def one_line(error: Exception) -> str:
    """The error as one line: what went wrong, with which file, and for a full disk what to do."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        line = f"{place}{error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            line += "; free some space and run the command again, what was written before is kept"
        return line
    return " ".join(str(error).split()) or type(error).__name__


for _command in (
    demo.demo,
    train.train,
    evaluate.evaluate,
    refine.project,
    refine.prune,
    explain.explain,
    explain.report,
    info.info,
):
    app.command()(guarded(_command))
