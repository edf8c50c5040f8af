"""Running audits on models: unit by unit, so that what is done survives, then the numbers.

The rows of a unit depend on the model, the images, the settings, the seed and, in their last
digits, on how they are computed (see `computed`); numbers, tables and pictures on the rows of all
units. So an audit that was killed and started again in the same way gives the same ``audit.json``,
byte for byte but for its ``times``.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from protofast.attacks.objectives import frozen
from protofast.audits.audit import Audit, Row, Subject, skipped
from protofast.audits.comparison import Measured, comparisons
from protofast.audits.computed import Earlier, how, images_at_once, images_computed
from protofast.audits.files import FORMAT, AuditFolder, Unit, fingerprint, table_text
from protofast.audits.parts import Part
from protofast.audits.subjects import AuditedModel, check_models, images_checksum
from protofast.audits.summary import (
    Predicted,
    audit_text,
    describe_audit,
    environment,
    settings_text,
    sources_checksum,
    version,
)
from protofast.data import Batches, ImageSet
from protofast.evaluation import predict
from protofast.files import finite
from protofast.models import PrototypeModel

PREDICTIONS = "predictions"
_PREDICTED = 512  # images of a unit of predictions

Progress = Callable[[str, int, int], None]  # called with (what is done, work done, work in all)
Stop = Callable[[], bool]
Warn = Callable[[str], None]


class AuditResult(NamedTuple):
    """How far an audit came.

    folder: where it is. finished: whether ``audit.json`` is written. done, units: of the work.
    summary: what ``audit.json`` says; empty if it is not finished.
    """

    folder: Path
    finished: bool
    done: int
    units: int
    summary: dict[str, Any]


def run_audits(
    models: Sequence[AuditedModel],
    images: ImageSet,
    audits: Sequence[Audit[Any]],
    out: Path | str,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
    warn: Warn = warnings.warn,
) -> AuditResult:
    """Runs audits on one or several models, or goes on with those an earlier call began in ``out``.

    Args:
        models: The models, of different names.
        images: The test images, of one size.
        audits: What to measure, each under one protocol; in this order.
        out: The audit folder (see :mod:`protofast.audits.files`).
        seed: Key of all random numbers.
        batch_size: Images that go through a model at once, at most; None for 64 on a GPU and 16 on
            a CPU. Results depend on it in their last digits alone; see `computed`.
        progress: Called before and after each batch of work, which is counted in images, those of
            attacks weighed by their steps.
        stop: Asked before each batch; when it says so, the audit ends unfinished.
        warn: Called where finished work in ``out`` was computed otherwise than now, or does not fit
            what is asked for and is done anew.

    Raises:
        ValueError: No models, no audits, two of one name, names that are no file names, or batches
            of no image.
        DataError: The images do not fit a model, or cannot be read.
        RunFolderError: ``out`` is something else, or another process is working on it.
        OSError: The disk is full, say; what was done is kept.
    """
    check_models(models, images)
    _check_audits(audits)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    folder = AuditFolder.open(out)
    with folder.lock(), contextlib.ExitStack() as stack:
        folder.sweep()
        for each in models:
            stack.enter_context(frozen(each.model))
        work = _Work(folder, models, images, audits, seed, batch_size, progress, stop, warn)
        settings = settings_text(models, audits, seed)
        if not folder.says("settings.toml", settings):
            folder.outdate()
            folder.write("settings.toml", settings)
        return work.run()


class _Work:
    """The work of one call of `run_audits`."""

    def __init__(
        self,
        folder: AuditFolder,
        models: Sequence[AuditedModel],
        images: ImageSet,
        audits: Sequence[Audit[Any]],
        seed: int,
        batch_size: int | None,
        progress: Progress | None,
        stop: Stop | None,
        warn: Warn,
    ) -> None:
        self.folder, self.models, self.images, self.audits = folder, models, images, audits
        self.seed, self.warn = seed, warn
        devices = [each.model.prototypes.device for each in models]
        self.batch_sizes = [images_at_once(device, batch_size) for device in devices]
        self.computed = [how(*each) for each in zip(devices, self.batch_sizes, strict=True)]
        self.earlier = Earlier(now=set(self.computed))
        self.tell: Progress = progress or (lambda what, done, total: None)
        self.stop: Stop = stop or (lambda: False)
        self.data = images_checksum(images, lambda *said: self.tell("looking at images", *said))
        self.identities = [each.identity for each in models]
        self.seconds: dict[str, float] = {}

    def run(self) -> AuditResult:
        """Predictions of all models, then the units of every audit, then the summary."""
        predictions = self._predictions()
        if predictions is None:
            return AuditResult(self.folder.path, False, 0, 0, {})
        parts = list(self._parts(predictions))
        found = {part.path: self._done(part) for part in parts}
        for remark in self.earlier.remarks(str(self.folder.path)):
            self.warn(remark)
        units = sum(len(part.units) for part in parts)
        if not self._measure(parts, found):
            done = sum(unit is not None for rows in found.values() for unit in rows)
            return AuditResult(self.folder.path, False, done, units, {})
        summary = self._summarise(parts, found, predictions)
        return AuditResult(self.folder.path, True, units, units, summary)

    # ----- predictions -----

    def _predictions(self) -> list[Predicted] | None:
        """What each model names; None when asked to stop."""
        starts = range(0, len(self.images), _PREDICTED)
        every = list(range(len(self.images)))
        chunks = [every[start : start + _PREDICTED] for start in starts]
        predictions, done, total = [], 0, len(self.models) * len(self.images)
        for place, (model, identity) in enumerate(zip(self.models, self.identities, strict=True)):
            part = f"{model.name}/{PREDICTIONS}"
            units: list[Unit] = []
            for number, positions in enumerate(chunks):
                self.tell(f"predictions, {model.name}", done, total)
                if self.stop():
                    return None
                mark = self._mark(identity, audit=PREDICTIONS, positions=positions)
                unit = self._read(part, number, mark)
                if unit is None:
                    self.folder.outdate()
                    start = time.monotonic()
                    rows = self._predict(model.model, positions, self.batch_sizes[place])
                    seconds = time.monotonic() - start
                    unit = Unit(rows, len(positions), self.computed[place], seconds)
                    unit = self.folder.write_unit(part, number, mark, unit)
                self._took(part, unit)
                units.append(unit)
                done += len(positions)
            named = [row["predicted"] for unit in units for row in unit.rows]
            predictions.append(Predicted(torch.tensor(named), images_computed(units)))
        self.tell("predictions", total, total)
        return predictions

    def _predict(self, model: PrototypeModel, positions: list[int], batch_size: int) -> list[Row]:
        batches = Batches(self.images.subset(positions), batch_size)
        named = predict(model, batches).logits.argmax(dim=1).tolist()
        names = self.images.names
        return [
            {"image": position, "name": names[position], "predicted": label}
            for position, label in zip(positions, named, strict=True)
        ]

    # ----- audits -----

    def _parts(self, predictions: Sequence[Predicted]) -> Iterator[Part]:
        labels = self.images.labels
        in_all = torch.stack([each.classes == labels for each in predictions]).all(dim=0)  # [n]
        subjects = [
            Subject(
                name=model.name,
                model=model.model,
                images=self.images,
                predictions=named.classes,
                correct_in_all=in_all,
                seed=self.seed,
                batch_size=batch_size,
                facts=model.facts,
            )
            for model, named, batch_size in zip(
                self.models, predictions, self.batch_sizes, strict=True
            )
        ]
        for audit in self.audits:
            for number, subject in enumerate(subjects):
                known = {
                    "audit": audit.name,
                    "settings": audit.settings.model_dump(mode="json"),
                    "predictions": fingerprint({"named": subject.predictions.tolist()}),
                    "correct_in_all": fingerprint({"correct": in_all.tolist()}),
                    "facts": subject.facts,
                }
                units = [list(unit) for unit in audit.units(subject)]
                marks = [
                    self._mark(self.identities[number], positions=positions, **known)
                    for positions in units
                ]
                path = f"{subject.name}/{audit.name}-{audit.settings.protocol}"
                yield Part(path, subject, audit, number, units, marks, self.computed[number])

    def _done(self, part: Part) -> list[Unit | None]:
        """The units that an earlier call finished, None for the others."""
        return [self._read(part.path, number, mark) for number, mark in enumerate(part.marks)]

    def _read(self, part: str, number: int, mark: str) -> Unit | None:
        """A unit that an earlier call finished, and notes how."""
        unit = self.folder.read_unit(part, number, mark)
        if unit is not None:
            self.earlier.kept[unit.computed] += 1
        elif self.folder.has_unit(part, number):
            self.earlier.stale += 1
        return unit

    def _measure(self, parts: Sequence[Part], found: dict[str, list[Unit | None]]) -> bool:
        """Does what is left to do; whether all of it is done."""
        total = sum(part.work for part in parts)
        done = sum(
            part.effort * len(positions)
            for part in parts
            for positions, unit in zip(part.units, found[part.path], strict=True)
            if unit is not None
        )
        for part in parts:
            units = found[part.path]
            for block in part.blocks:
                missing = [number for number in block if units[number] is None]
                if not missing:
                    continue
                self.tell(part.label, done, total)
                if self.stop():
                    return False
                for number, unit in zip(missing, self._block(part, block, missing), strict=True):
                    units[number] = unit
                    done += part.effort * unit.images
        return True

    def _block(self, part: Part, block: list[int], missing: list[int]) -> list[Unit]:
        """Measures units together; those that are missing are written, and returned."""
        self.folder.outdate()
        start = time.monotonic()
        rows = part.audit.measure(
            part.subject, [at for number in block for at in part.units[number]]
        )
        seconds = (time.monotonic() - start) / len(missing)
        written = []
        for number in missing:
            positions = set(part.units[number])
            unit = Unit(
                [row for row in rows if row["image"] in positions],
                len(positions),
                part.computed,
                seconds,
            )
            written.append(self.folder.write_unit(part.path, number, part.marks[number], unit))
        return written

    def _summarise(
        self,
        parts: Sequence[Part],
        found: Mapping[str, Sequence[Unit | None]],
        predictions: Sequence[Predicted],
    ) -> dict[str, Any]:
        measured: list[Measured] = []
        total = sum(part.work for part in parts)
        done = total - sum(part.drawing for part in parts)
        for part in parts:
            self.tell(f"pictures, {part.label}", done, total)
            start = time.monotonic()
            units = [unit for unit in found[part.path] if unit is not None]  # all of them
            for unit in units:
                self._took(part.path, unit)
            measured.append(self._measured(part, units))
            self.seconds[f"{part.path}/summary"] = round(time.monotonic() - start, 3)
            done += part.drawing
        names = [model.name for model in self.models]

        def comparing(one: int, other: int) -> None:
            self.tell(f"comparing {names[one]} and {names[other]}", total, total)

        compared = comparisons(measured, comparing)
        self.tell("summary", total, total)
        said = {
            **describe_audit(self.models, self.identities, predictions, self.images, self.seed),
            "audits": [each.entry for each in measured],
            "comparisons": compared,
            "times": {"seconds": self.seconds, "environment": environment(self.models)},
        }
        summary: dict[str, Any] = finite(said)
        self.folder.outdate("audit.html")  # of the numbers before
        self.folder.write("audit.json", audit_text(summary))
        return summary

    def _measured(self, part: Part, units: Sequence[Unit]) -> Measured:
        """What came out of one part; writes its table and pictures."""
        rows = part.audit.counted([row for unit in units for row in unit.rows])
        table = f"tables/{part.path.replace('/', '-')}.csv"
        self.folder.write(table, table_text(rows))
        asked, used = (
            settings.model_dump(mode="json", exclude={"protocol"})
            for settings in (part.audit.settings, part.audit.settings_of(part.subject))
        )
        mark = fingerprint({"units": part.marks, "rows": rows})
        pictures = self.folder.pictures(
            part.path, mark, lambda folder: part.audit.pictures(part.subject, rows, folder)
        )
        entry = {
            "model": part.model,
            "audit": part.audit.name,
            "title": part.audit.title,
            "protocol": part.audit.settings.protocol,
            "settings": used,
            "left_open": [key for key, value in used.items() if value != asked[key]],
            "seed": self.seed,
            "computed": images_computed(units),
            "numbers": [asdict(number) for number in part.audit.summarise(part.subject, rows)],
            "rows": len(rows),
            "skipped": skipped(rows),
            "table": table,
            "pictures": pictures,
        }
        return Measured(entry, part.audit.values(rows))

    # ----- identity and time -----

    def _mark(self, identity: str, **known: Any) -> str:
        """The fingerprint of a unit of a model with these weights."""
        shared = {
            "format": FORMAT,
            "protofast": version(),
            "sources": sources_checksum(),
            "torch": str(torch.__version__),
            "data": self.data,
            "seed": self.seed,
        }
        return fingerprint({**shared, "model": identity, **known})

    def _took(self, part: str, unit: Unit) -> None:
        self.seconds[part] = round(self.seconds.get(part, 0.0) + unit.seconds, 3)


def _check_audits(audits: Sequence[Audit[Any]]) -> None:
    names = [f"{audit.name}-{audit.settings.protocol}" for audit in audits]
    if not names:
        raise ValueError("there is no audit to run")
    if len(set(names)) < len(names):
        raise ValueError(f"an audit may run once under each protocol; got {', '.join(names)}")
