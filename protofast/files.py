"""Writing a file so that a reader, or a later start, finds the old one or the new one, never half of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Writes a whole file: under a temporary name beside it, synced, then renamed.

    Args:
        path: The file; its folder must exist.
        content: Text is written as UTF-8.

    Raises:
        OSError: Nothing was changed; ``filename`` is ``path`` (a full disk, say).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
