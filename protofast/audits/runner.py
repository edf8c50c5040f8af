"""Running audits on models: unit by unit, so that what is done survives, then the numbers.

The rows of a unit depend on the model, the images, the settings, the seed and on nothing else, and
numbers, tables and pictures on the rows of all units. So an audit that was killed and started again
gives the same ``audit.json``, byte for byte but for its ``times``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protofast.attacks.objectives import frozen
from protofast.audits.audit import Audit, Row, Subject, skipped
from protofast.audits.comparison import Measured, comparisons
from protofast.audits.files import FORMAT, AuditFolder, Unit, fingerprint, table_text
from protofast.audits.subjects import AuditedModel, check_models, images_checksum
from protofast.audits.summary import (
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
_PREDICTED_AT_ONCE = 512  # images of a unit of predictions
# On a CPU an audit's units are cut into smaller ones: an attack on so many images takes a while, is
# not slower for it, and an interruption costs less.
_ATTACKED_AT_ONCE = 16
_DRAWN = 8  # images that are attacked once more, to be drawn

Progress = Callable[[str, int, int], None]  # called with (what is done, work done, work in all)
Stop = Callable[[], bool]


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
    batch_size: int = 64,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> AuditResult:
    """Runs audits on one or several models, or goes on with those an earlier call began in ``out``.

    Args:
        models: The models, of different names.
        images: The test images, of one size.
        audits: What to measure, each under one protocol; in this order.
        out: The audit folder (see :mod:`protofast.audits.files`).
        seed: Key of all random numbers.
        batch_size: Images per forward pass at most.
        progress: Called before and after each unit; work is counted in images, those of attacks
            weighed by their steps.
        stop: Asked before each unit; when it says so, the audit ends unfinished.

    Raises:
        ValueError: No models, no audits, two of one name, or names that are no file names.
        DataError: The images do not fit a model, or cannot be read.
        RunFolderError: ``out`` is something else, or another process is working on it.
        OSError: The disk is full, say; what was done is kept.
    """
    check_models(models, images)
    _check_audits(audits)
    folder = AuditFolder.open(out)
    with folder.lock(), contextlib.ExitStack() as stack:
        folder.sweep()
        for each in models:
            stack.enter_context(frozen(each.model))
        work = _Work(folder, models, images, audits, seed, batch_size, progress, stop)
        settings = settings_text(models, audits, seed, batch_size)
        if not folder.says("settings.toml", settings):
            folder.outdate()
            folder.write("settings.toml", settings)
        return work.run()


@dataclass(frozen=True)
class _Part:
    """One audit of one model under one protocol."""

    path: str
    subject: Subject
    audit: Audit[Any]
    model: int
    units: list[list[int]]
    marks: list[str]  # fingerprint of each unit

    @property
    def label(self) -> str:
        return f"{self.audit.title} ({self.audit.settings.protocol}), {self.subject.name}"

    @property
    def effort(self) -> int:
        """What an image costs."""
        return self.audit.effort

    @property
    def drawing(self) -> int:
        """What the numbers and pictures cost."""
        return _DRAWN * self.effort

    @property
    def work(self) -> int:
        """What all of it costs."""
        return self.effort * sum(map(len, self.units)) + self.drawing


class _Work:
    """The work of one call of `run_audits`."""

    def __init__(
        self,
        folder: AuditFolder,
        models: Sequence[AuditedModel],
        images: ImageSet,
        audits: Sequence[Audit[Any]],
        seed: int,
        batch_size: int,
        progress: Progress | None,
        stop: Stop | None,
    ) -> None:
        self.folder, self.models, self.images, self.audits = folder, models, images, audits
        self.seed, self.batch_size = seed, batch_size
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
        units = sum(len(part.units) for part in parts)
        if not self._measure(parts, found):
            done = sum(unit is not None for rows in found.values() for unit in rows)
            return AuditResult(self.folder.path, False, done, units, {})
        summary = self._summarise(parts, found, predictions)
        return AuditResult(self.folder.path, True, units, units, summary)

    # ----- predictions -----

    def _predictions(self) -> list[Tensor] | None:
        """int64 [n] for each model, on the CPU; None when asked to stop."""
        starts = range(0, len(self.images), _PREDICTED_AT_ONCE)
        every = list(range(len(self.images)))
        chunks = [every[start : start + _PREDICTED_AT_ONCE] for start in starts]
        predictions, done, total = [], 0, len(self.models) * len(self.images)
        for model, identity in zip(self.models, self.identities, strict=True):
            part = f"{model.name}/{PREDICTIONS}"
            named: list[int] = []
            for number, positions in enumerate(chunks):
                self.tell(f"predictions, {model.name}", done, total)
                if self.stop():
                    return None
                mark = self._mark(identity, audit=PREDICTIONS, positions=positions)
                unit = self.folder.read_unit(part, number, mark)
                if unit is None:
                    self.folder.outdate()
                    start = time.monotonic()
                    rows = self._predict(model.model, positions)
                    unit = self.folder.write_unit(
                        part, number, mark, rows, time.monotonic() - start
                    )
                self._took(part, unit)
                named += [row["predicted"] for row in unit.rows]
                done += len(positions)
            predictions.append(torch.tensor(named, dtype=torch.int64))
        self.tell("predictions", total, total)
        return predictions

    def _predict(self, model: PrototypeModel, positions: list[int]) -> list[Row]:
        batches = Batches(self.images.subset(positions), self.batch_size)
        named = predict(model, batches).logits.argmax(dim=1).tolist()
        names = self.images.names
        return [
            {"image": position, "name": names[position], "predicted": label}
            for position, label in zip(positions, named, strict=True)
        ]

    # ----- audits -----

    def _parts(self, predictions: Sequence[Tensor]) -> Iterator[_Part]:
        labels = self.images.labels
        in_all = torch.stack([each == labels for each in predictions]).all(dim=0)  # [n]
        subjects = [
            Subject(
                name=model.name,
                model=model.model,
                images=self.images,
                predictions=named,
                correct_in_all=in_all,
                seed=self.seed,
                batch_size=self.batch_size,
                facts=model.facts,
            )
            for model, named in zip(self.models, predictions, strict=True)
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
                units = list(_pieces(audit.units(subject), subject.device))
                marks = [
                    self._mark(self.identities[number], positions=positions, **known)
                    for positions in units
                ]
                path = f"{subject.name}/{audit.name}-{audit.settings.protocol}"
                yield _Part(path, subject, audit, number, units, marks)

    def _done(self, part: _Part) -> list[Unit | None]:
        """The units that an earlier call finished, None for the others."""
        return [
            self.folder.read_unit(part.path, number, mark) for number, mark in enumerate(part.marks)
        ]

    def _measure(self, parts: Sequence[_Part], found: dict[str, list[Unit | None]]) -> bool:
        """Does what is left to do; whether all of it is done."""
        todo = [
            (part, number)
            for part in parts
            for number, unit in enumerate(found[part.path])
            if unit is None
        ]
        total = sum(part.work for part in parts)
        done = total - sum(part.effort * len(part.units[number]) for part, number in todo)
        done -= sum(part.drawing for part in parts)
        for part, number in todo:
            self.tell(part.label, done, total)
            if self.stop():
                return False
            self.folder.outdate()
            start = time.monotonic()
            rows = part.audit.measure(part.subject, part.units[number])
            found[part.path][number] = self.folder.write_unit(
                part.path, number, part.marks[number], rows, time.monotonic() - start
            )
            done += part.effort * len(part.units[number])
        return True

    def _summarise(
        self,
        parts: Sequence[_Part],
        found: Mapping[str, Sequence[Unit | None]],
        predictions: Sequence[Tensor],
    ) -> dict[str, Any]:
        measured: list[Measured] = []
        total = sum(part.work for part in parts)
        done = total - sum(part.drawing for part in parts)
        for part in parts:
            self.tell(f"pictures, {part.label}", done, total)
            start = time.monotonic()
            rows: list[Row] = []
            for unit in found[part.path]:
                assert unit is not None  # all of it is done
                rows += unit.rows
                self._took(part.path, unit)
            counted = part.audit.counted(rows)
            measured.append(Measured(self._entry(part, counted), part.audit.values(counted)))
            self.seconds[f"{part.path}/summary"] = round(time.monotonic() - start, 3)
            done += part.drawing
        self.tell("summary", total, total)
        said = {
            **describe_audit(self.models, self.identities, predictions, self.images, self.seed),
            "audits": [each.entry for each in measured],
            "comparisons": comparisons(measured),
            "times": {"seconds": self.seconds, "environment": environment(self.models)},
        }
        summary: dict[str, Any] = finite(said)
        self.folder.outdate("audit.html")  # of the numbers before
        self.folder.write("audit.json", audit_text(summary))
        return summary

    def _entry(self, part: _Part, rows: Sequence[Row]) -> dict[str, Any]:
        """What ``audit.json`` says of one part; writes its table and pictures."""
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
        return {
            "model": part.model,
            "audit": part.audit.name,
            "title": part.audit.title,
            "protocol": part.audit.settings.protocol,
            "settings": used,
            "left_open": [key for key, value in used.items() if value != asked[key]],
            "seed": self.seed,
            "numbers": [asdict(number) for number in part.audit.summarise(part.subject, rows)],
            "rows": len(rows),
            "skipped": skipped(rows),
            "table": table,
            "pictures": pictures,
        }

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
            "batch_size": self.batch_size,
        }
        return fingerprint({**shared, "model": identity, **known})

    def _took(self, part: str, unit: Unit) -> None:
        self.seconds[part] = round(self.seconds.get(part, 0.0) + unit.seconds, 3)


def _pieces(units: Sequence[Sequence[int]], device: torch.device) -> Iterator[list[int]]:
    """The units, in smaller ones on a CPU."""
    for unit in units:
        size = _ATTACKED_AT_ONCE if device.type == "cpu" else len(unit)
        for start in range(0, len(unit), max(1, size)):
            yield [int(position) for position in unit[start : start + size]]


def _check_audits(audits: Sequence[Audit[Any]]) -> None:
    names = [f"{audit.name}-{audit.settings.protocol}" for audit in audits]
    if not names:
        raise ValueError("there is no audit to run")
    if len(set(names)) < len(names):
        raise ValueError(f"an audit may run once under each protocol; got {', '.join(names)}")
