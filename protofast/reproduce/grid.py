"""A grid on the disk: what of it is done, and doing the rest, cell by cell.

```
plan.toml                 what the grid consists of
runs/<model>-<seed>/      a training run each
runs/<model>-<seed>.start of a model that starts from another: SHA-256 of the checkpoint it had
audits/<audit>-<seed>/    an audit folder each
```

Runs and audits are ordinary ones: both take up where they were interrupted, so the grid does, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from protofast.errors import CheckpointError, DataError, RunFolderError, SettingsError
from protofast.files import sha256_of, write_atomically
from protofast.reproduce.plan import PATHS, AuditPlan, Plan, load_plan
from protofast.training import RunFolder, Settings, build_data, differences
from protofast.training.images import checksums, other_checksums
from protofast.training.schedule import find_place
from protofast.training.schedule import plan as steps_of
from protofast.training.settings import DataSettings

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
        return Grid(load_plan(file, kept=True), folder)

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
        if cell.work == "audit":
            return (cell.path / "audit.html").is_file() and self._audited(cell) is not None
        return _is_trained(cell.path) and self._starts_from(cell) is not False

    def carry_out(self, train: Train, audit: AuditRuns, tell: Callable[[str], None]) -> int:
        """Do all cells that are not done; the exit code of the first that ends with another than 0.

        Args:
            train: Trains, or goes on training.
            audit: Audits, or goes on with an audit.
            tell: Called with a line before each cell that is to be done.

        Raises:
            SettingsError: A run that is there was made with other settings, or goes on from a
                training that has been done anew.
            DataError: A run that is there was made with other images, and there is more to do.
        """
        self._check_name()
        cells = list(self.cells())
        for cell in cells:
            if cell.work == "train":
                self._check_settings(cell)
                self._check_start(cell)
        if not all(self.done(cell) for cell in cells):
            self._check_images(cells)
        self._adopt()
        for number, cell in enumerate(cells, start=1):
            if self.done(cell):
                continue
            tell(f"{number} of {len(cells)}: {cell.label}")
            if cell.work == "train":
                self._check_start(cell)
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
        """What ``audit.json`` says of each audit that is measured."""
        for cell in self.cells():
            said = self._audited(cell) if cell.work == "audit" else None
            if said is not None:
                yield cell, said

    def _check_name(self) -> None:
        """Raise RunFolderError for a folder that holds another grid's runs."""
        file = self.folder / "plan.toml"
        if file.is_file() and (name := load_plan(file, kept=True).name) != self.plan.name:
            raise RunFolderError(
                f"{self.folder} holds the grid {name}; choose another folder for {self.plan.name} "
                "(--out)"
            )

    def _adopt(self) -> None:
        """Write the plan down."""
        file = self.folder / "plan.toml"
        text = tomli_w.dumps(self.plan.model_dump(mode="json", exclude_none=True))
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            return
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

    def _start_now(self, cell: Cell) -> str | None:
        """SHA-256 of the checkpoint that a model would start from; None if it is not there yet."""
        start = self.plan.models[cell.name].start
        if start is None or not _is_trained(self.run(start, cell.seed)):
            return None
        folder = RunFolder.open(self.run(start, cell.seed))
        return sha256_of(folder.checkpoints / f"{folder.resolve(self.plan.checkpoint)}.safetensors")

    def _starts_from(self, cell: Cell) -> bool | None:
        """Whether a model started from what the run of its `start` holds; None if not known."""
        now, note = self._start_now(cell), _note(cell)
        if now is None or not note.is_file():
            return None
        return note.read_text(encoding="utf-8", errors="replace").strip() == now

    def _check_start(self, cell: Cell) -> None:
        """Note where a model starts from; raise SettingsError if it started from something else.

        A run without a note is taken for one of the start that is there.
        """
        if (cell.path / "settings.toml").is_file() and self._starts_from(cell) is False:
            start = f"{self.plan.models[cell.name].start}-{cell.seed}"
            raise SettingsError(
                f"{cell.path} was trained from another {start}, which has been trained anew since; "
                "delete it, so that it is trained from this one"
            )
        now = self._start_now(cell)
        if now is not None and self._starts_from(cell) is not True:
            cell.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(_note(cell), now + "\n")

    def _audit_plan(self, cell: Cell) -> AuditPlan:
        return next(audit for audit in self.plan.audits if audit.name == cell.name)

    def _check_settings(self, cell: Cell) -> None:
        """Raise SettingsError if a run was made with other settings than the plan's."""
        if not (cell.path / "settings.toml").is_file():
            return
        wanted = self.plan.settings(cell.name, cell.seed, self.data, self._start_of(cell))
        there = RunFolder.open(cell.path).settings
        # Images in another place are compared themselves.
        changed = [text for text in differences(there, wanted) if not text.startswith(PATHS)]
        if changed:
            raise SettingsError(
                f"{cell.path} was trained with other settings: {', '.join(changed)}; delete it, "
                "take the plan back, or choose another folder (--out)"
            )

    def _check_images(self, cells: Sequence[Cell]) -> None:
        """Raise DataError if a run was trained on other images than those at hand.

        Its settings do not tell: another folder of the same layout may hold others.
        """
        at_hand: dict[DataSettings, dict[str, str]] = {}
        for cell in cells:
            if cell.work == "audit" or not (cell.path / "settings.toml").is_file():
                continue
            folder = RunFolder.open(cell.path)
            here = self.plan.settings(cell.name, cell.seed, self.data).data
            if here.kind == "birds":  # drawn from settings, which are compared
                continue
            try:
                known = folder.read("latest")[2]["images"]
            except CheckpointError:  # none yet, or damaged, which training says
                continue
            here = here.model_copy(update={"leaks": "allow", "in_memory": False})
            if here not in at_hand:
                at_hand[here] = _checksums(here)
            others = other_checksums(known, at_hand[here])
            if others:
                raise DataError(
                    f"{cell.path} was trained on the images in {folder.settings.data.root}, but in "
                    f"{here.root} {others}; give the folder that it was trained on (--data), or "
                    "choose another for a grid of these images (--out)"
                )

    def _audited(self, cell: Cell) -> dict[str, Any] | None:
        """What ``audit.json`` says, if all that is wanted was measured of the runs as they are.

        One that is damaged, or of other models than the plan's, is as good as none.
        """
        said = _read(cell.path / "audit.json")
        try:
            if said is None or not self._is_wanted(cell, said):
                return None
            _check_numbers(said)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        return said

    def _is_wanted(self, cell: Cell, said: dict[str, Any]) -> bool:
        wanted = self._audit_plan(cell)
        audits = wanted.build()
        expected = [
            (model, audit.name, audit.settings.model_dump(mode="json"))
            for audit in audits
            for model in range(len(wanted.models))
        ]
        defaults = {
            (audit.name, protocol): settings.model_dump(mode="json")
            for audit in audits
            for protocol, settings in audit.protocols.items()
        }
        found = [
            (
                each["model"],
                each["audit"],
                {
                    # A setting that is younger than the audit had the effect of its default.
                    **defaults.get((each["audit"], each["protocol"]), {}),
                    **each["settings"],
                    # What the plan left open was filled in by the audit.
                    **dict.fromkeys(each.get("left_open", ())),
                    "protocol": each["protocol"],
                },
            )
            for each in said["audits"]
        ]
        names = [self.run(model, cell.seed).name for model in wanted.models]
        return (
            said["seed"] == cell.seed
            and [described["name"] for described in said["models"]] == names
            and all(each in found for each in expected)
            and all(
                self._is_current(model, cell.seed, described)
                for model, described in zip(wanted.models, said["models"], strict=True)
            )
        )

    def _is_current(self, model: str, seed: int, described: dict[str, Any]) -> bool:
        """Whether an audited model is still the one that the run holds."""
        path = self.run(model, seed)
        if not path.is_dir():  # of a grid whose numbers alone were brought here
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


def _check_numbers(said: dict[str, Any]) -> None:
    """Raise some error if an ``audit.json`` lacks what a page is made from."""
    counts = [said["data"]["images"]]
    values = []
    for described in said["models"]:
        counts += [described["prototypes"], described["classes"]]
        values.append(described["accuracy"])
    for entry in said["audits"]:
        counts += entry["skipped"].values()
        for number in entry["numbers"]:
            if number["value"] is not None:
                counts.append(number["n"])
                values.append(number["value"])
            if not isinstance(number["key"], str):
                raise ValueError("a key is no text")
    if not all(isinstance(count, int) for count in counts):
        raise ValueError("something that is counted is no whole number")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a value is no number")


def _checksums(data: DataSettings) -> dict[str, str]:
    """What checkpoints hold of the images, of those at hand."""
    try:
        return checksums(build_data(data))
    except DataError as error:
        if data.root is None or Path(data.root).is_dir():
            raise
        raise DataError(f"{error} (say with --data where the images are)") from error


def _note(cell: Cell) -> Path:
    """Where it is written down which checkpoint a model started from."""
    return cell.path.with_name(f"{cell.path.name}.start")


def _read(file: Path) -> dict[str, Any] | None:
    """An ``audit.json``; None if there is none yet, or half of one."""
    try:
        said = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None
