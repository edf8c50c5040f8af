"""Writing a file so that a reader finds the old one or the new one, never half of it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from protofast.errors import RunFolderError


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Writes a whole file: under a temporary name beside it, synced, then renamed.

    Args:
        path: The file; its folder must exist.
        content: Text is written as UTF-8; what that cannot hold (a file's name in another
            encoding) as escapes.

    Raises:
        OSError: ``filename`` is ``path``, which was not changed (a full disk, say).
    """
    write_together({Path(path): content})


def write_together(contents: Mapping[Path, bytes | str]) -> None:
    """Writes files as :func:`write_atomically` does; none is renamed before all are written.

    Raises:
        OSError: ``filename`` is the file that could not be written. Nothing was changed, unless the
            error came with the renaming, which takes no room on the disk: then the files before
            this one are the new ones.
    """
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    path = None
    try:
        for path, content in contents.items():
            with temporaries[path].open("wb") as file:
                file.write(encoded(content))
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            temporary.replace(path)
        for folder in {path.parent for path in contents}:
            sync_folder(folder)
    except BaseException as error:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other process that asks from working on a folder; freed when a process dies.

    Raises:
        RunFolderError: Another process holds it, or the file system has no locks.
    """
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(
                f"another process is working on {folder}; wait for it or stop it"
            ) from error
        except OSError as error:
            raise RunFolderError(
                f"the file system of {folder} has no locks ({error.strerror}), which keep "
                "two processes from changing one folder; choose one on another (--out)"
            ) from error
        yield


def encoded(content: bytes | str) -> bytes:
    """The bytes that :func:`write_atomically` writes."""
    return content.encode(errors="backslashreplace") if isinstance(content, str) else content


def finite(value: Any) -> Any:
    """A JSON value with None in place of numbers that are not finite, which JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Makes what was written into a file survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str | None:
    """The SHA-256 of a file in hexadecimal digits, or None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def older_name(folder: Path) -> Path:
    """What this process calls a folder while a newer one takes its place."""
    return folder.with_name(f".{folder.name}-{os.getpid()}-old")


def standing(folder: Path) -> Path:
    """A folder, or, if it is just being replaced (or that was cut short), the one before."""
    if not folder.exists():
        for older in sorted(folder.parent.glob(f".{folder.name}-*-old")):
            return older
    return folder
