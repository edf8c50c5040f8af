"""What a run writes down: numbers, remarks and checkpoints. Only the first rank writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from protofast.training.health import HealthWarning
from protofast.training.progress import Progress
from protofast.training.run_folder import RunFolder
from protofast.training.schedule import PlanStep

PARTIAL = "-partial"  # ends the name of a checkpoint inside an epoch


class Journal:
    """Writes to a run folder and tells the progress display.

    Args:
        folder: Where to write.
        progress: What to tell.
        writes: Whether this process is the one that writes.
        keep_all: Keep every checkpoint that ends a step.
        tensorboard: Write TensorBoard files as well (needs the package ``tensorboard``).
    """

    def __init__(
        self,
        folder: RunFolder,
        progress: Progress,
        *,
        writes: bool,
        keep_all: bool = False,
        tensorboard: bool = False,
    ) -> None:
        self.folder = folder
        self.progress = progress
        self.writes = writes
        self.keep_all = keep_all
        self._rows: list[dict[str, Any]] = []
        self._board = None
        if tensorboard and writes:
            from protofast.training.tensorboard import Board

            self._board = Board(folder.path / "tensorboard")

    def say(self, text: str) -> None:
        """A remark or warning for the user, and for ``log.txt``."""
        if self.writes:
            self.folder.log(text)
            self.progress.say(text)

    def row(self, kind: str, step: PlanStep, numbers: Mapping[str, Any]) -> None:
        """A line of ``metrics.jsonl``, written when the step is complete (see :meth:`save`)."""
        if not self.writes:
            return
        place = {
            "kind": kind,
            "step": step.step,
            "stage": step.stage,
            "epoch": step.epoch,
            "cycle": step.cycle,
            "index": step.index,
        }
        self._rows.append({**place, **numbers})
        if self._board is not None:
            self._board.add(kind, step.step, numbers)

    def warn(self, step: PlanStep, warnings: list[HealthWarning]) -> None:
        """Signs of sick prototypes at the end of a stage."""
        for warning in warnings:
            self.row("warning", step, warning.row())
            self.say(f"{step.name}: {warning.message}")

    def finish(self, line: str) -> None:
        """A finished step, summed up in a line."""
        if self.writes:
            self.folder.log(line)
            self.progress.finish(line)

    def save(
        self,
        name: str,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        *,
        best: str | None,
    ) -> None:
        """Writes a checkpoint, sets ``latest`` and ``best``, removes old checkpoints.

        At the end of a step, the step's lines of ``metrics.jsonl`` are written before.

        A process killed anywhere in here leaves ``latest`` on a whole checkpoint, and its successor
        goes through the same steps again.
        """
        if not self.writes:
            return
        if not name.endswith(PARTIAL):
            self.folder.append_metrics(self._rows)
            self._rows = []
        facts = facts | {"metrics_bytes": self.folder.metrics_size()}
        self.folder.write(name, tensors, facts)
        if best is not None:
            self.folder.point("best", best)
        self.folder.point("latest", name)
        self._remove_old({name, best})

    def _remove_old(self, wanted: set[str | None]) -> None:
        """Keeps the two newest that end a step, the newest of each stage, and the wanted ones."""
        names = [name for name in self.folder.names() if not self.folder.is_refined(name)]
        whole = [name for name in names if not name.endswith(PARTIAL)]
        newest = {name.split("-")[0]: name for name in whole}
        keep = {*wanted, *newest.values(), *(whole if self.keep_all else whole[-2:])}
        for name in names:
            if name not in keep:
                self.folder.remove(name)

    def close(self) -> None:
        """Nothing more will come."""
        if self._board is not None:
            self._board.close()
        self.progress.end()
