"""Rendered images on disk: one file per world of birds, checked when it is read.

A file is a magic word, the length and the checksum of a JSON header, the header, and the pixels.
The header holds the key and a checksum of the pixels, so that a truncated, damaged or outdated file
is noticed and made again. It is written under a temporary name and renamed: processes that race to
make the same file all succeed, and no reader ever sees half of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_MAGIC = b"PFBIRDS2"
_PREFIX = struct.Struct("<8sII")  # the magic word, length and checksum of the header
_STALE = 24 * 3600  # seconds after which a temporary file is one that a killed process left
_START = 4096  # the pixels begin at a multiple of this, so that they can be mapped

Arrays = dict[str, npt.NDArray[Any]]


def default_folder() -> Path | None:
    """``PROTOFAST_CACHE`` if it is set, else ``protofast`` in this user's cache folder.

    None, with a warning, if the user has no home folder.
    """
    try:
        return _default_folder()
    except RuntimeError:  # what Path.expanduser raises
        warnings.warn(
            "this user has no home folder, so the rendered birds are not kept; set PROTOFAST_CACHE "
            "to a folder for them",
            stacklevel=3,
        )
        return None


def _default_folder() -> Path:
    chosen = os.environ.get("PROTOFAST_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "protofast"


def load(file: Path, key: str) -> Arrays | None:
    """The arrays in a cache file, memory-mapped; None if it is missing, damaged or outdated."""
    try:
        with file.open("rb") as stream:
            magic, length, checksum = _PREFIX.unpack(stream.read(_PREFIX.size))
            if magic != _MAGIC or length > _START - _PREFIX.size:
                return None
            text = stream.read(length)
        if zlib.crc32(text) != checksum:
            return None
        header = json.loads(text)
        if header["key"] != key or file.stat().st_size != header["bytes"]:
            return None
        data = np.memmap(file, dtype=np.uint8, mode="c", offset=header["start"])
        if zlib.crc32(data.data) != header["checksum"]:
            return None
        arrays: Arrays = {}
        for name, (dtype, shape, first) in header["arrays"].items():
            count = int(np.prod(shape)) * np.dtype(dtype).itemsize
            arrays[name] = data[first : first + count].view(dtype).reshape(shape)
        return arrays
    except Exception:  # whatever is wrong with the file, the birds can be rendered
        return None


def save(file: Path, key: str, arrays: Arrays) -> None:
    """Writes a cache file; if that fails, warns and leaves nothing behind."""
    blocks: list[bytes | memoryview] = []
    layout: dict[str, tuple[str, tuple[int, ...], int]] = {}
    first = 0
    for name, array in arrays.items():
        layout[name] = (array.dtype.str, array.shape, first)
        padding = -array.nbytes % 64
        blocks += [np.ascontiguousarray(array).data.cast("B"), bytes(padding)]
        first += array.nbytes + padding
    checksum = 0
    for block in blocks:
        checksum = zlib.crc32(block, checksum)
    header = {
        "key": key,
        "checksum": checksum,
        "arrays": layout,
        "start": _START,
        "bytes": _START + first,
    }
    text = json.dumps(header).encode()
    if len(text) > _START - _PREFIX.size:
        raise ValueError("the header of a cache file is too long")
    try:
        _write(file, _PREFIX.pack(_MAGIC, len(text), zlib.crc32(text)) + text, blocks)
    except OSError as error:
        warnings.warn(
            f"the rendered birds could not be kept in {file.parent} ({error.strerror or error}); "
            "they will be rendered again next time. Free some space, or set PROTOFAST_CACHE to "
            "another folder",
            stacklevel=3,
        )


def _write(file: Path, header: bytes, blocks: list[bytes | memoryview]) -> None:
    """Writes the blocks from ``_START`` on, after the header; whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _sweep(file.parent)
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as stream:  # with the permissions that this user's files have
            stream.write(header + bytes(_START - len(header)))
            for block in blocks:
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _sweep(folder: Path) -> None:
    """Removes what processes that were killed while writing have left."""
    for left in folder.glob("birds-*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()
