"""A run folder: everything a run leaves behind, readable while it goes on and after a crash.

```
settings.toml      what the run was asked to do
environment.json   with what: versions, machine, threads, command; one entry per start
metrics.jsonl      one JSON object a line
log.txt            what was said
checkpoints/       <stage>-<epoch>.safetensors; the small files latest and best name one of them
prototypes/        prototypes.json: source image, location and box of each prototype
```

Every file is replaced atomically, but for ``metrics.jsonl`` and ``log.txt``, which only grow.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protofast.errors import (
    CheckpointError,
    DataError,
    RunFolderError,
    SettingsError,
    command_line,
)
from protofast.files import finite, locked, sync_folder, write_atomically, write_together
from protofast.models import ProtoPNet
from protofast.training.checkpoint import load_checkpoint, save_checkpoint
from protofast.training.settings import Settings
from protofast.training.settings_file import load_settings, settings_text

_SUFFIX = ".safetensors"
_MODEL = "model/"
_REFINED = ("projected-", "pruned-")  # see protofast.training.refine


class LoadedModel(NamedTuple):
    """A model read back from a run."""

    settings: Settings
    model: ProtoPNet
    classes: tuple[str, ...]
    prototypes: list[dict[str, Any]]  # rows as in prototypes.json; none before a projection
    images: Mapping[str, str] = MappingProxyType({})  # see protofast.training.images


class RunFolder:
    """A folder that holds a run; make one with :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"

    @staticmethod
    def create(path: Path | str, settings: Settings) -> RunFolder:
        """A new run folder; it appears whole, with its settings, or not at all.

        Raises:
            RunFolderError: There is something at ``path`` already (an empty folder is welcome).
        """
        path = Path(path).absolute()
        RunFolder.check_free(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new name, whatever a killed process may have left; what it holds has usual permissions.
        parcel = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        draft = parcel / path.name
        try:
            (draft / "checkpoints").mkdir(parents=True)
            (draft / "prototypes").mkdir()
            (draft / "metrics.jsonl").touch()
            write_atomically(draft / "settings.toml", settings_text(settings))
            draft.rename(path)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise RunFolderError(f"{path} was just made by another process") from error
            raise
        finally:
            shutil.rmtree(parcel, ignore_errors=True)
        sync_folder(path.parent)
        return RunFolder(path)

    @staticmethod
    def check_free(path: Path | str) -> None:
        """Makes sure that a new run can be made at ``path``.

        Raises:
            RunFolderError: There is something already.
        """
        path = Path(path)
        if path.is_dir() and (path / "settings.toml").exists():
            raise RunFolderError(
                f"{path} already holds a run; go on with it "
                f"({command_line('train', '--resume', path)}), or choose another folder for a new "
                "one (--out)"
            )
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise RunFolderError(
                f"{path} exists and is not an empty folder; choose another for the run (--out)"
            )

    @staticmethod
    def open(path: Path | str) -> RunFolder:
        """An existing run folder.

        Raises:
            RunFolderError: There is none at ``path``.
        """
        path = Path(path)
        if not path.exists():
            raise RunFolderError(f"no run folder {path}")
        if not (path / "settings.toml").is_file():
            raise RunFolderError(
                f"{path} is not a run folder: it has no settings.toml; "
                "give the folder that `protofast train` made"
            )
        return RunFolder(path)

    @property
    def settings(self) -> Settings:
        """What ``settings.toml`` says.

        Raises:
            RunFolderError: It is damaged.
        """
        file = self.path / "settings.toml"
        try:
            if file.stat().st_size == 0:
                raise SettingsError(f"{file} is empty")
            return load_settings(file)
        except SettingsError as error:
            raise RunFolderError(f"{error}; the run's settings are damaged: correct them") from None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other process from training or changing this run; freed when a process dies.

        Raises:
            RunFolderError: Another process holds it, or the file system has no locks.
        """
        with locked(self.path):
            yield

    def sweep(self) -> None:
        """Deletes what a killed training left half-written; call it under the lock.

        Evaluating, explaining and reporting take no lock: their files are left alone.
        """
        own = (".settings.toml.*", ".environment.json.*", "checkpoints/.*", "prototypes/.*")
        for pattern in own:
            for file in (*self.path.glob(f"{pattern}.tmp"),):
                file.unlink(missing_ok=True)

    # ----- checkpoints -----

    def names(self) -> list[str]:
        """Names of all checkpoints, oldest first."""
        ages = []
        for file in self.checkpoints.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # a training that goes on deleted it
                if file.name[0] != ".":
                    ages.append((file.stat().st_mtime_ns, file.name.removesuffix(_SUFFIX)))
        return [name for _, name in sorted(ages)]

    def file(self, name: str) -> Path:
        """Where a checkpoint of that name is, or would be."""
        return self.checkpoints / (name + _SUFFIX)

    def pointer(self, which: str) -> str | None:
        """The name that ``latest`` or ``best`` points to, or None."""
        try:
            text = (self.checkpoints / which).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        return text.strip() or None

    def point(self, which: str, name: str) -> None:
        """Lets ``latest`` or ``best`` point to a checkpoint."""
        write_atomically(self.checkpoints / which, name + "\n")

    def unpoint(self, which: str) -> None:
        """Lets ``latest`` or ``best`` point to nothing."""
        (self.checkpoints / which).unlink(missing_ok=True)

    def point_to_best(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Lets ``best`` point to a checkpoint and describes its prototypes: both or neither."""
        file, text = self._prototypes(rows)
        file.parent.mkdir(exist_ok=True)
        write_together({file: text, self.checkpoints / "best": name + "\n"})

    def write(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Writes the checkpoint ``name``."""
        save_checkpoint(self.file(name), tensors, facts)

    def remove(self, name: str) -> None:
        """Deletes the checkpoint ``name``, if it is there."""
        (self.file(name)).unlink(missing_ok=True)

    def resolve(self, which: str) -> str:
        """The name of an existing checkpoint; ``best`` is ``latest`` before the first test.

        Args:
            which: ``latest``, ``best``, or a name such as ``joint-7``.

        Raises:
            CheckpointError: There is none; the message names what there is.
        """
        for _ in range(2):  # a training that goes on may move the pointer in between
            name: str | None = which.removesuffix(_SUFFIX)
            if which in ("latest", "best"):
                name = self.pointer(which)
                if name is None and which == "best":
                    name = self.pointer("latest")
            known = self.names()
            if name is not None and name in known:
                return name
        there = f"there are {', '.join(known)}" if known else "there are none yet"
        called = which if name in (which, None) else f"{name}, which is the {which},"
        raise CheckpointError(f"no checkpoint {called} in {self.path}; {there}")

    @staticmethod
    def is_refined(name: str) -> bool:
        """Whether a checkpoint was made outside the run's plan, by projecting or pruning another.

        Nothing can be resumed from such a checkpoint, and training never deletes it.
        """
        return name.startswith(_REFINED)

    def read(self, which: str) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
        """Name, tensors and facts of a checkpoint.

        Args:
            which: ``latest``, ``best``, or a name such as ``joint-7``.

        Raises:
            CheckpointError: There is none, or it is damaged; the message names what else there is.
        """
        name = self.resolve(which)
        if not (self.file(name)).exists():
            name = self.resolve(which)  # a training that goes on has just put a newer one there
        try:
            tensors, facts = load_checkpoint(self.file(name))
        except CheckpointError as error:
            others = ", ".join(other for other in self.names() if other != name)
            hint = f"; others in this run: {others}" if others else ""
            raise CheckpointError(f"{error}{hint}") from error
        return name, tensors, facts

    def load_model(self, which: str = "best", *, device: torch.device | str = "cpu") -> LoadedModel:
        """The settings, model (in eval mode) and class names of a checkpoint.

        Raises:
            CheckpointError: As for :meth:`read`, or its weights do not fit the model.
        """
        name, tensors, facts = self.read(which)
        model = ProtoPNet.from_config(facts["model"])
        load_weights(model, tensors, name)
        return LoadedModel(
            self.settings,
            model.to(device).eval(),
            tuple(facts["classes"]),
            facts.get("prototypes", []),
            facts.get("images", {}),
        )

    # ----- words and numbers -----

    def append_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines to ``metrics.jsonl``; numbers that are not finite become null."""
        lines = [json.dumps(finite(row), allow_nan=False) + "\n" for row in rows]
        self._append(self.metrics, "".join(lines))

    def metrics_size(self) -> int:
        """Length of ``metrics.jsonl`` in bytes, after making sure they are on the disk."""
        with self.metrics.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut_metrics(self, size: int) -> None:
        """Takes away what was written after the checkpoint that a run is resumed from."""
        with self.metrics.open("ab") as file:
            if file.tell() > size:
                file.truncate(size)

    def rows(self) -> list[dict[str, Any]]:
        """All whole lines of ``metrics.jsonl``."""
        text = self.metrics.read_text(encoding="utf-8") if self.metrics.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in whole.splitlines()]

    def log(self, text: str) -> None:
        """Adds a line with the time to ``log.txt``."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._append(self.path / "log.txt", f"{now} {text}\n")

    def write_prototypes(self, rows: list[dict[str, Any]]) -> None:
        """Writes ``prototypes/prototypes.json``, unless it says that already."""
        file, text = self._prototypes(rows)
        if not file.exists() and not rows:
            return
        if not file.exists() or file.read_bytes() != text.encode():
            file.parent.mkdir(exist_ok=True)
            write_atomically(file, text)

    def _prototypes(self, rows: list[dict[str, Any]]) -> tuple[Path, str]:
        lines = ",\n".join(json.dumps(row) for row in rows)
        return self.path / "prototypes" / "prototypes.json", f"[\n{lines}\n]\n"

    @staticmethod
    def _append(path: Path, text: str) -> None:
        # Unbuffered, so that a full disk is an error here and not when the file is closed.
        try:
            with path.open("ab", buffering=0) as file:
                content = memoryview(text.encode())
                while content:  # what does not fit is written in part before it is an error
                    content = content[file.write(content) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def model_tensors(model: ProtoPNet) -> dict[str, Tensor]:
    """Weights and buffers under the names they have in a checkpoint."""
    return {_MODEL + name: tensor for name, tensor in model.state_dict().items()}


def check_classes(trained: Sequence[str], data: Sequence[str]) -> None:
    """Makes sure that the data have the classes that a network was trained on, in their order.

    Raises:
        DataError: They have not; the message names one that is missing and one that is new.
    """
    different = differing_classes(trained, data)
    if different:
        raise DataError(
            f"the network knows {len(trained)} classes, the data have {len(data)}: {different}; "
            "restore the data that the run was trained on, or train a new run"
        )


def differing_classes(trained: Sequence[str], data: Sequence[str]) -> str | None:
    """What tells the data's classes from those of a network: one that is missing, one that is new.

    None where they are the same, in the same order.
    """
    if list(trained) == list(data):
        return None
    missing = [f"{name!r} is missing" for name in trained if name not in data]
    new = [f"{name!r} is new" for name in data if name not in trained]
    return " and ".join(missing[:1] + new[:1]) or "their order is another"


def load_weights(model: ProtoPNet, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copies a checkpoint's weights into a model.

    Raises:
        CheckpointError: They do not fit; the message names the first that does not.
    """
    weights = {
        key.removeprefix(_MODEL): tensor
        for key, tensor in tensors.items()
        if key.startswith(_MODEL)
    }
    expected = model.state_dict()
    for key in sorted({*weights, *expected}):
        here = list(expected[key].shape) if key in expected else "nothing"
        there = list(weights[key].shape) if key in weights else "nothing"
        if here != there:
            raise CheckpointError(
                f"checkpoint {name} does not fit the model: {key} is {there} there, {here} here"
            )
    model.load_state_dict(weights)
