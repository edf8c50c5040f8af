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
        self._writer = SummaryWriter(str(folder))

    def add(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        """Adds every number of a row as ``<kind>/<name>``."""
        for name, value in numbers.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Writes out what is waiting."""
        self._writer.close()
