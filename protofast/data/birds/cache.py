"""Rendered images on disk: one file per world of birds, checked when it is read.

A file is a magic word, the length of a JSON header, the header, and the pixels. The header holds
the key and a checksum of the pixels, so that a truncated, damaged or outdated file is noticed and
made again. It is written under a temporary name and renamed: processes that race to make the same
file all succeed, and no reader ever sees half of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_MAGIC = b"PFBIRDS1"
_START = 4096  # the pixels begin at a multiple of this, so that they can be mapped

Arrays = dict[str, npt.NDArray[Any]]


def default_folder() -> Path:
    """``PROTOFAST_CACHE`` if it is set, else ``protofast`` in this user's cache folder."""
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
            magic, length = struct.unpack("<8sI", stream.read(12))
            if magic != _MAGIC:
                return None
            header = json.loads(stream.read(length))
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
    except (OSError, ValueError, KeyError, TypeError, struct.error):
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
    if len(text) > _START - 12:
        raise ValueError("the header of a cache file is too long")
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            stream.write(struct.pack("<8sI", _MAGIC, len(text)) + text)
            stream.write(bytes(_START - stream.tell()))
            for block in blocks:
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        warnings.warn(
            f"the rendered birds could not be kept in {file.parent} ({error.strerror or error}); "
            "they will be rendered again next time. Free some space, or set PROTOFAST_CACHE to "
            "another folder",
            stacklevel=3,
        )
