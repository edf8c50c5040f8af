"""The numbers of ``metrics.jsonl`` as TensorBoard files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protofast.errors import InstallError


class Board:
    """Writes scalars; one x-axis, the number of the plan's step."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise InstallError(
                "training.tensorboard needs the package tensorboard; "
                "run: pip install 'protofast[tensorboard]'"
            ) from error
        self._folder = str(folder)
        self._open = SummaryWriter
        self._writer: SummaryWriter | None = None

    def add(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        """Adds every number of a row as ``<kind>/<name>``."""
        if self._writer is None:
            # What an interrupted start wrote of this step and of later ones is not shown.
            self._writer = self._open(self._folder, purge_step=step)
        for name, value in numbers.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Writes out what is waiting."""
        if self._writer is not None:
            self._writer.close()
