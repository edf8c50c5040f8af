"""A grid on the disk: what of it is done, and doing the rest, cell by cell.

```
plan.toml                 what the grid consists of
runs/<model>-<seed>/      a training run each
audits/<audit>-<seed>/    an audit folder each
```

Runs and audits are ordinary ones: both take up where they were interrupted, so the grid does, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from protofast.errors import CheckpointError, RunFolderError, SettingsError
from protofast.files import sha256_of, write_atomically
from protofast.reproduce.plan import AuditPlan, Plan, load_plan
from protofast.training import RunFolder, Settings, differences
from protofast.training.schedule import find_place
from protofast.training.schedule import plan as steps_of

Work = Literal["train", "audit"]


@dataclass(frozen=True)
class Cell:
    """A piece of the grid: the training of a model, or the audits of some models, with a seed."""

    work: Work
    name: str
    seed: int
    path: Path

    @property
    def label(self) -> str:
        """As it is told to the user."""
        verb = "train" if self.work == "train" else "audit"
        return f"{verb} {self.name}, seed {self.seed}"


Train = Callable[[Settings, Path, bool], int]
"""(settings, run folder, whether it is there already) -> exit code."""
AuditRuns = Callable[[Sequence[Path], AuditPlan, int, Path], int]
"""(run folders, what to audit, seed, audit folder) -> exit code."""


class Grid:
    """A plan and the folder in which it is carried out.

    Args:
        plan: What the grid consists of.
        folder: Where everything is; made when the first cell runs.
        data: Overrides that say where the images are.
    """

    def __init__(self, plan: Plan, folder: Path | str, data: Sequence[str] = ()) -> None:
        self.plan = plan
        self.folder = Path(folder)
        self.data = tuple(data)

    @staticmethod
    def open(folder: Path | str) -> Grid:
        """A grid that was begun before.

        Raises:
            RunFolderError: There is none.
        """
        file = Path(folder) / "plan.toml"
        if not file.is_file():
            raise RunFolderError(f"{folder} holds no grid (no plan.toml); run one into it first")
        return Grid(load_plan(file), folder)

    def cells(self) -> Iterator[Cell]:
        """All cells, seed by seed, in the order in which they run.

        Each audit follows the last of the trainings that it needs, so that a grid that is cut short
        has numbers to show.
        """
        for seed in self.plan.seeds:
            trained: set[str] = set()
            for audit in self.plan.audits:
                for wanted in audit.models:
                    start = self.plan.models[wanted].start
                    for model in (wanted,) if start is None else (start, wanted):
                        if model not in trained:
                            trained.add(model)
                            yield Cell("train", model, seed, self.run(model, seed))
                path = self.folder / "audits" / f"{audit.name}-{seed}"
                yield Cell("audit", audit.name, seed, path)

    def run(self, model: str, seed: int) -> Path:
        """The run folder of a model."""
        return self.folder / "runs" / f"{model}-{seed}"

    def done(self, cell: Cell) -> bool:
        """Whether a cell is finished."""
        return _is_trained(cell.path) if cell.work == "train" else self._audited(cell)

    def carry_out(self, train: Train, audit: AuditRuns, tell: Callable[[str], None]) -> int:
        """Do all cells that are not done; the exit code of the first that ends with another than 0.

        Args:
            train: Trains, or goes on training.
            audit: Audits, or goes on with an audit.
            tell: Called with a line before each cell that is to be done.

        Raises:
            SettingsError: A run that is there was made with other settings.
        """
        self._adopt()
        cells = list(self.cells())
        for cell in cells:
            if cell.work == "train":
                self._check_settings(cell)
        for number, cell in enumerate(cells, start=1):
            if self.done(cell):
                continue
            tell(f"{number} of {len(cells)}: {cell.label}")
            if cell.work == "train":
                start = self._start_of(cell)
                settings = self.plan.settings(cell.name, cell.seed, self.data, start)
                code = train(settings, cell.path, (cell.path / "settings.toml").is_file())
            else:
                wanted = self._audit_plan(cell)
                runs = [self.run(model, cell.seed) for model in wanted.models]
                code = audit(runs, wanted, cell.seed, cell.path)
            if code:
                return code
        return 0

    def results(self) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """What ``audit.json`` says of each audit that is done."""
        for cell in self.cells():
            said = _read(cell.path / "audit.json") if cell.work == "audit" else None
            if said is not None:
                yield cell, said

    def _adopt(self) -> None:
        """Write the plan down; refuse a folder that holds another grid's runs."""
        file = self.folder / "plan.toml"
        text = tomli_w.dumps(self.plan.model_dump(mode="json", exclude_none=True))
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            return
        if file.is_file() and load_plan(file).name != self.plan.name:
            raise RunFolderError(
                f"{self.folder} holds the grid {load_plan(file).name}; choose another folder for "
                f"{self.plan.name} (--out)"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)

    def _start_of(self, cell: Cell) -> Path | None:
        """The checkpoint that a model starts from, or did if its training has begun."""
        start = self.plan.models[cell.name].start
        if start is None:
            return None
        if (cell.path / "settings.toml").is_file():
            return Path(RunFolder.open(cell.path).settings.model.weights)
        folder = RunFolder.open(self.run(start, cell.seed))
        return folder.file(folder.resolve(self.plan.checkpoint))

    def _audit_plan(self, cell: Cell) -> AuditPlan:
        return next(audit for audit in self.plan.audits if audit.name == cell.name)

    def _check_settings(self, cell: Cell) -> None:
        """Raise SettingsError if a run was made with other settings than the plan's."""
        if not (cell.path / "settings.toml").is_file():
            return
        wanted = self.plan.settings(cell.name, cell.seed, self.data, self._start_of(cell))
        there = RunFolder.open(cell.path).settings
        changed = [text for text in differences(there, wanted) if "data.root" not in text]
        if changed:
            raise SettingsError(
                f"{cell.path} was trained with other settings: {', '.join(changed)}; delete it, "
                "take the plan back, or choose another folder (--out)"
            )

    def _audited(self, cell: Cell) -> bool:
        said = _read(cell.path / "audit.json")
        if said is None:
            return False
        wanted = self._audit_plan(cell)
        expected = [
            (model, audit.name, audit.settings.model_dump(mode="json"))
            for audit in wanted.build()
            for model in range(len(wanted.models))
        ]
        found = [
            (
                each["model"],
                each["audit"],
                # What the plan left open was filled in by the audit.
                {
                    **each["settings"],
                    **dict.fromkeys(each.get("left_open", ())),
                    "protocol": each["protocol"],
                },
            )
            for each in said["audits"]
        ]
        return (
            said["seed"] == cell.seed
            and all(each in found for each in expected)
            and all(
                self._is_current(model, cell.seed, described)
                for model, described in zip(wanted.models, said["models"], strict=True)
            )
        )

    def _is_current(self, model: str, seed: int, described: dict[str, Any]) -> bool:
        """Whether an audited model is still the one that the run holds."""
        path = self.run(model, seed)
        if not path.is_dir():  # taken away to save room
            return True
        folder = RunFolder.open(path)
        try:
            name = folder.resolve(self.plan.checkpoint)
        except CheckpointError:
            return False
        now = sha256_of(folder.checkpoints / f"{name}.safetensors")
        return bool(described["checkpoint_sha256"] == now)


def _is_trained(path: Path) -> bool:
    """Whether a training has come to its end."""
    if not (path / "settings.toml").is_file():
        return False
    folder = RunFolder.open(path)
    try:
        _, _, facts = folder.read("latest")
    except CheckpointError:
        return False
    steps, place = steps_of(folder.settings.training.schedule), facts["place"]
    return find_place(steps, place["key"], under_way=place["batch"] > 0) == len(steps)


def _read(file: Path) -> dict[str, Any] | None:
    """An ``audit.json``; None if there is none yet."""
    try:
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return said
