"""Auditing trained runs: their models, and the test images that all of them are audited on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from protofast.audits.audit import Audit
from protofast.audits.runner import AuditResult, Progress, Stop, Warn, run_audits
from protofast.audits.subjects import AuditedModel
from protofast.data import ImageSet
from protofast.errors import DataError, RunFolderError
from protofast.files import sha256_of
from protofast.settings_tree import leaves
from protofast.training import RunFolder, build_data, check_classes, other_images
from protofast.training.settings import DataSettings
from protofast.training.settings_file import PLACES

_LONGEST_NAME = 60  # of a run, in characters; several stand side by side in one file name
# What is done to a run's images on purpose; audits look at images as they are.
_CLEAN = ("jpeg",)
# What may differ between the data of two runs whose test images are the same.
_FREE = ("root", "test_root", "in_memory", "leaks", "train_per_class", *_CLEAN)


def audit_runs(
    runs: Sequence[Path | str],
    audits: Sequence[Audit[Any]],
    out: Path | str,
    *,
    checkpoint: str = "best",
    device: torch.device | str = "cpu",
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
    warn: Warn = warnings.warn,
) -> AuditResult:
    """Runs audits on trained runs, on the test images of the first; see :func:`run_audits`.

    Args:
        runs: Run folders, of models trained on the same classes.
        audits: What to measure.
        out: The audit folder.
        checkpoint: Which of each run: ``best``, ``latest`` or a name.
        device: Where to compute.
        seed: See :func:`run_audits`, as for the others.
        batch_size: See there.
        progress: See there.
        stop: See there.
        warn: See there, and :func:`audited_models`.

    Raises:
        RunFolderError: One is no run folder, or is given twice.
        CheckpointError: A checkpoint is missing or damaged.
        DataError: The runs do not share their classes or test images.
    """
    folders = [RunFolder.open(run) for run in runs]
    images = build_data(shared_data(folders)).test
    models = audited_models(folders, images, checkpoint=checkpoint, device=device, warn=warn)
    return run_audits(
        models,
        images,
        audits,
        out,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        stop=stop,
        warn=warn,
    )


def shared_data(folders: Sequence[RunFolder], place: DataSettings | None = None) -> DataSettings:
    """The data settings whose test images all runs are audited on: the first run's.

    Args:
        folders: The runs.
        place: Where the images of all runs are now, if not where they were trained; the caller has
            compared the images.

    Raises:
        DataError: Another run has other test images.
        RunFolderError: There are no runs, or one is given twice.
    """
    if not folders:
        raise RunFolderError("there is no run to audit")
    paths = [folder.path.resolve() for folder in folders]
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise RunFolderError(f"{folder.path} is given twice; an audit takes each run once")
    moved = {} if place is None else {key: getattr(place, key) for key in PLACES}
    first, *others = [folder.settings.data.model_copy(update=moved) for folder in folders]
    for folder, other in zip(folders[1:], others, strict=True):
        different = _differences(first, other)
        if different:
            raise DataError(
                f"{folder.path} has other test images than {folders[0].path}: "
                f"{', '.join(different)}; audit them apart"
            )
    clean = {key: DataSettings.model_fields[key].default for key in _CLEAN}
    return first.model_copy(update={"leaks": "allow", **clean})  # training has looked for leaks


def audited_models(
    folders: Sequence[RunFolder],
    images: ImageSet,
    *,
    checkpoint: str = "best",
    device: torch.device | str = "cpu",
    warn: Warn = warnings.warn,
) -> list[AuditedModel]:
    """The runs' models, named after their folders.

    Args:
        folders: The runs.
        images: The test images.
        checkpoint: Which of each run.
        device: Where to compute.
        warn: Called where the images are others than those that the runs were tested on.

    Raises:
        CheckpointError: A checkpoint is missing or damaged.
        DataError: A model was trained on other classes, or tested on other images than the first.
    """
    models: list[AuditedModel] = []
    tested = ""
    for name, folder in zip(run_names([each.path for each in folders]), folders, strict=True):
        which = folder.resolve(checkpoint)
        loaded = folder.load_model(which, device=device)
        try:
            check_classes(loaded.classes, images.classes)
        except DataError as error:
            raise DataError(f"{folder.path}: {error}") from error
        here = loaded.images.get("test", "")
        if models and here != tested:
            raise DataError(
                f"{folder.path} was tested on other images than {folders[0].path}: names or labels "
                "differ; audit them apart"
            )
        tested = here
        others = other_images(loaded.images, test=images)
        if others and not models:
            warn(f"{folder.path}: {others}")
        models.append(
            AuditedModel(
                name=name,
                model=loaded.model,
                sha256=sha256_of(folder.checkpoints / f"{which}.safetensors") or "",
                run=str(folder.path.resolve()),
                checkpoint=which,
                facts=loaded.settings.model_dump(mode="json"),
            )
        )
    return models


def run_names(paths: Sequence[Path]) -> list[str]:
    """What to call each run: by its folder, and by those above where names are alike."""
    whole = [path.resolve() for path in paths]
    for depth in range(1, max((len(path.parts) for path in whole), default=1) + 1):
        names = [_as_file_name("-".join(path.parts[-depth:])) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{name}-{number}" for number, name in enumerate(names, start=1)]


def _as_file_name(text: str) -> str:
    """A name for files and pages from that of a folder: no dot in front, no bytes, not too long."""
    plain = text.encode(errors="replace").decode().replace("/", "").lstrip(".")
    return plain[-_LONGEST_NAME:].lstrip(".") or "run"


def _differences(one: DataSettings, other: DataSettings) -> list[str]:
    """Keys of two data settings that make other test images, with both values."""
    before, now = (
        dict(leaves(each.model_dump(mode="json", exclude=set(_FREE)))) for each in (one, other)
    )
    return [
        f"data.{'.'.join(key)} is {now.get(key)!r}, not {before.get(key)!r}"
        for key in dict.fromkeys((*before, *now))
        if before.get(key) != now.get(key)
    ]
