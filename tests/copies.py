"""Copies of runs that take neither time nor room: their checkpoints are links."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LINKED = ".safetensors"
"""Files of 17 MB, which protofast replaces as a whole and never writes into."""


def copy_run(original: Path, to: Path) -> Path:
    """A copy that a test may change, checkpoints with `replace` alone; returns its folder."""

    def copy(source: str, target: str) -> None:
        if source.endswith(LINKED):
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    return Path(shutil.copytree(original, to, copy_function=copy))


def replace(file: Path, content: bytes) -> None:
    """Puts a new file in the place of one that a copy shares with its original."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)


@contextmanager
def unspoilt(original: Path) -> Iterator[None]:
    """Makes sure that nobody writes into the checkpoints that copies share with their original."""
    before = _stamps(original)
    yield
    assert _stamps(original) == before, "a checkpoint was written into; see copies.replace"


def _stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    stats = {file: file.stat() for file in folder.rglob(f"*{LINKED}")}
    return {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}
