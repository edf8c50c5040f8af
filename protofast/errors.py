"""What can go wrong for a user, as exceptions whose text is one plain line.

Each message says what was expected, what came and what to do about it. The command line prints the
message alone and exits with a non-zero code; everything else that is raised (``ValueError``,
``TypeError``) is a misuse of the Python interface.
"""

from __future__ import annotations

import shlex
from pathlib import Path


class ProtofastError(Exception):
    """Base class of the errors below; ``str(error)`` is one line that a user can act on."""


class DataError(ProtofastError):
    """An image, a data folder or one of its index files is missing, damaged or of another kind."""


class SettingsError(ProtofastError):
    """A setting is unknown or has a value that is not allowed."""


class CheckpointError(ProtofastError):
    """A checkpoint is missing, truncated, or does not fit the model."""


class RunFolderError(ProtofastError):
    """A run folder is missing, incomplete, or already in use."""


class InstallError(ProtofastError):
    """Something that this step needs is not installed."""


def command_line(*words: str | Path) -> str:
    """What to type for a command of protofast, quoted where the shell needs it.

    >>> command_line("train", "--resume", Path("my runs/a"))
    "protofast train --resume 'my runs/a'"
    """
    return shlex.join(["protofast", *map(str, words)])
