"""The typer application: its commands, and how errors become one line and an exit code."""

import contextlib
import functools
import inspect
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

import typer

from protofast.cli import attack, audit, demo, evaluate, explain, info, refine, reproduce, train
from protofast.cli.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    console,
    print_error,
    print_warning,
)
from protofast.cli.errors import exit_code, is_expected, one_line

app = typer.Typer(
    name="protofast",
    help="Train networks that classify by prototypical parts, and look at what they have learnt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted. "
    "PROTOFAST_TRACEBACK=1 shows where an error comes from.",
)


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """The command, whose errors are one line on standard error and an exit code, never a traceback.

    PROTOFAST_TRACEBACK=1 prints the traceback as well. SIGTERM acts like Ctrl-C.
    """

    @functools.wraps(command)
    def run(*args: object, **options: object) -> None:
        try:
            with _terminated_like_interrupted(), _plain_warnings():
                code = command(*args, **options)
        except KeyboardInterrupt:
            print_error("interrupted")
            code = EXIT_INTERRUPTED
        except BrokenPipeError:
            _close_standard_output()  # whoever read it has seen enough
            code = EXIT_FAILED
        except Exception as error:
            if not is_expected(error):
                raise
            if os.environ.get("PROTOFAST_TRACEBACK") == "1":
                console(stderr=True).print_exception()
            print_error(one_line(error))
            code = exit_code(error)
        if code:
            raise typer.Exit(code)

    return run


def help_text(command: Callable[..., object]) -> str:
    """The docstring with every paragraph on one line, to be folded at the terminal's width.

    Lines that are indented, such as those of examples, stay lines of their own.
    """
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(
        paragraph if "\n  " in paragraph else " ".join(paragraph.split())
        for paragraph in paragraphs
    )


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the line of code that they come from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print_warning(
            " ".join(str(message).split())
        )
        yield


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that half-written files are taken away as on Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _close_standard_output() -> None:
    """Lets Python end without a complaint about the text it could not write."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


for _command in (
    demo.demo,
    train.train,
    evaluate.evaluate,
    refine.project,
    refine.prune,
    explain.explain,
    attack.attack,
    explain.report,
    audit.audit,
    reproduce.reproduce,
    info.info,
):
    app.command(help=help_text(_command))(guarded(_command))
