"""How what went wrong becomes one line on standard error and an exit code."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from protofast.cli.console import EXIT_FAILED, EXIT_USAGE
from protofast.errors import DataError, ProtofastError, SettingsError, command_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HINTS = {
    **dict.fromkeys(_FULL, "free some space and run the command again; what was there is kept"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "this user may not; change the permissions, or work on a copy elsewhere",
    ),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR), "there is a file where a folder is needed; choose another"
    ),
    errno.EISDIR: "there is a folder where a file is needed",
}


class UnfinishedRunError(ProtofastError):
    """Training stopped with an error; the message says how the run goes on."""

    def __init__(self, error: Exception, again: str) -> None:
        full = isinstance(error, OSError) and error.errno in _FULL
        remedy = "free some space, then go on with" if full else "once that is mended, go on with"
        line = _plain(error) if full else one_line(error)
        super().__init__(f"{line}; {remedy}: {again}")


class MemoryShortError(ProtofastError):
    """A command ran out of memory; the message says how it does with less."""

    def __init__(self, error: BaseException, remedy: str) -> None:
        super().__init__(f"out of memory ({_first_sentence(error)}); {remedy}")


@contextlib.contextmanager
def remedy_for_memory(remedy: Callable[[], str] | str) -> Iterator[None]:
    """Says what to do where memory is short, in the words of the command that is running.

    Args:
        remedy: What, or what says so once it is needed.

    Raises:
        MemoryShortError: Memory was short.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = remedy if isinstance(remedy, str) else remedy()
        raise MemoryShortError(error, said) from error


def resume_command(folder: Path) -> str:
    """What to type to go on with a run."""
    return command_line("train", "--resume", folder)


def is_expected(error: BaseException) -> bool:
    """Whether an error is one that a user can act on, rather than a mistake in protofast."""
    if isinstance(error, ProtofastError | OSError | ImportError | MemoryError):
        return True
    return is_out_of_memory(error)


def exit_code(error: BaseException) -> int:
    """2 for settings that are not allowed, else 1."""
    return EXIT_USAGE if isinstance(error, SettingsError) else EXIT_FAILED


def one_line(error: BaseException) -> str:
    """The error as one line: what went wrong, with which file, and what to do."""
    if is_out_of_memory(error):
        return (
            f"out of memory ({_first_sentence(error)}); use smaller batches or images "
            "(training.batch_size, training.test_batch_size, data.size), or do not keep all images "
            "in memory (data.in_memory=false)"
        )
    if isinstance(error, ModuleNotFoundError):
        return f"this needs {error.name}, which is not installed: pip install 'protofast[all]'"
    line = _plain(error)
    if isinstance(error, OSError) and error.errno in _HINTS:
        return f"{line}; {_HINTS[error.errno]}"
    return line


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, be it that of a GPU."""
    if isinstance(error, MemoryError):
        return True
    # torch.OutOfMemoryError on a GPU; on the CPU a RuntimeError like any other.
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )


def may_go_on(error: BaseException) -> bool:
    """Whether a run that stopped with this error can go on once the cause is mended."""
    return isinstance(error, OSError | DataError)


def _plain(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()).partition(". ")[0]
    return text or "no more is known"
