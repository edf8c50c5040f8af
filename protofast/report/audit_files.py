"""Reading an audit folder for its report: what cannot be used is named, the rest is shown.

Only ``audit.json`` has to be there. Whatever it says is checked piece by piece; a damaged number,
picture or audit is left out and named in ``problems``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from protofast.errors import RunFolderError
from protofast.report import words
from protofast.report.files import Json

FORMAT = 1

T = TypeVar("T")


@dataclass(frozen=True)
class Measure:
    """A number of an audit; its fields are those of `protofast.audits.Number`."""

    key: str
    label: str
    value: float | None
    unit: str
    better: str | None
    n: int
    low: float | None
    high: float | None

    @property
    def digits(self) -> int:
        """Decimals that it is written with."""
        return 1 if self.unit else 2


@dataclass(frozen=True)
class Shot:
    """A picture: file by what it shows, in the order in which to look at them."""

    files: dict[str, str]
    caption: str
    image: str


@dataclass(frozen=True)
class AuditedModel:
    """A model that was audited."""

    index: int
    name: str
    facts: Json  # everything that audit.json says of it

    @property
    def defences(self) -> list[str]:
        """What it was trained with against the audits."""
        found = self.facts.get("defences")
        return [words.name(one) for one in found] if isinstance(found, list) else []

    @property
    def accuracy(self) -> float | None:
        """In per cent, as it says itself."""
        value = finite_number(self.facts.get("accuracy"))
        return None if value is None else 100 * value


@dataclass(frozen=True)
class Result:
    """One audit of one model under one protocol."""

    model: AuditedModel
    audit: str
    title: str
    protocol: str
    settings: Json
    numbers: dict[str, Measure]
    rows: int
    skipped: dict[str, int]
    table: str | None
    shots: list[Shot]
    seed: int | None
    computed: dict[str, int]  # how many of its images were computed how

    @property
    def what(self) -> str:
        """For sentences about it."""
        return f"{self.model.name}, {self.audit}-{self.protocol}"


@dataclass(frozen=True)
class Difference:
    """By how much a number differs between two models, image by image.

    Attributes:
        first: The one model.
        second: The other.
        audit: Of which audit.
        protocol: Under which protocol.
        measure: The second model's number less the first's, over the images that both have one for.
        differ: On how many of these images the models differ at all.
    """

    first: AuditedModel
    second: AuditedModel
    audit: str
    protocol: str
    measure: Measure
    differ: int

    @property
    def turned(self) -> Difference:
        """The same, seen from the other model."""
        value, low, high = (
            None if end is None else -end
            for end in (self.measure.value, self.measure.high, self.measure.low)
        )
        measure = replace(self.measure, value=value, low=low, high=high)
        return replace(self, first=self.second, second=self.first, measure=measure)


@dataclass
class AuditFiles:
    """What an audit folder holds."""

    folder: Path
    data: Json = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    seed: int | None = None
    models: list[AuditedModel] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    times: Json = field(default_factory=dict)
    environment: Json = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def read(self, name: str) -> bytes | None:
        """A file of the folder; None if it is gone or lies outside the folder."""
        root = self.folder.resolve()
        try:
            path = (root / name).resolve()
            return path.read_bytes() if path.is_relative_to(root) else None
        except (OSError, ValueError):
            return None

    def columns(self, result: Result) -> dict[str, list[float]]:
        """The numeric columns of an audit's table, finite values of rows that were counted."""
        if result.table is None:
            return {}
        content = self.read(result.table)
        if content is None:
            self.problems.append(f"{words.name(result.table)} cannot be found: no distribution")
            return {}
        try:
            return _columns(content.decode("utf-8", "replace"))
        except csv.Error as error:
            self.problems.append(f"{words.name(result.table)} cannot be used: {error}")
            return {}


def read_audit(folder: Path) -> AuditFiles:
    """Reads an audit folder.

    Raises:
        RunFolderError: There is no such folder, or its audit.json is missing or unreadable.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such audit folder")
    path = folder / "audit.json"
    if not path.is_file():
        raise RunFolderError(
            f"{folder}: not the folder of a finished audit (it has no audit.json); "
            "give the folder that protofast audit wrote"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, found {type(content).__name__}")
        if content.get("format") != FORMAT:
            raise ValueError(
                f"format {content.get('format')!r}, this version of protofast reads {FORMAT}"
            )
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(
            f"{path}: cannot be used ({reason}); run protofast audit again"
        ) from error
    return _audit_of(folder, content)


def _audit_of(folder: Path, content: Json) -> AuditFiles:
    audit = AuditFiles(folder)
    problems = audit.problems
    audit.data = _table(content, "data", problems)
    audit.times = _table(content, "times", problems)
    environment = content.get("environment", audit.times.get("environment"))
    audit.environment = environment if isinstance(environment, dict) else {}
    audit.seed = _whole(content.get("seed"))
    classes = content.get("classes")
    audit.classes = words.class_names(classes) if isinstance(classes, list) else []
    for index, entry in enumerate(_list(content, "models", problems)):
        known = isinstance(entry, dict) and isinstance(entry.get("name"), str)
        if not known:
            problems.append(f"audit.json: model {index} cannot be used: it has no name")
        name = words.shortened(words.name(entry["name"])) if known else f"model {index}"
        audit.models.append(AuditedModel(index, name, entry if isinstance(entry, dict) else {}))
    seen = set()
    for index, entry in enumerate(_list(content, "audits", problems)):
        try:
            result = _result(entry, audit.models, problems)
            key = (result.model.index, result.audit, result.protocol)
            if key in seen:
                raise ValueError(f"{result.what} is there already")
            seen.add(key)
            audit.results.append(result)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = words.name(error)
            problems.append(f"audit.json: audit {index} cannot be used: {reason}")
    for index, entry in enumerate(_list(content, "comparisons", problems)):
        try:
            audit.differences.append(_difference(entry, audit.models))
        except (ValueError, TypeError) as error:
            reason = words.name(error)
            problems.append(f"audit.json: comparison {index} cannot be used: {reason}")
    return audit


def _difference(entry: Any, models: Sequence[AuditedModel]) -> Difference:
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, found {type(entry).__name__}")
    pair = entry.get("models")
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
        raise ValueError(f"it is not of two models, but of {words.name(pair)}")
    first, second = (_model_at(index, models) for index in pair)
    measure = _measure(entry)
    if measure.value is None or measure.low is None or measure.high is None:
        raise ValueError("its value or interval is missing")
    differ = _whole(entry.get("differ"))
    if differ is None:
        raise ValueError("on how many images the models differ is missing")
    return Difference(
        first,
        second,
        _text(entry, "audit"),
        _text(entry, "protocol"),
        measure,
        differ,
    )


def _model_at(said: Any, models: Sequence[AuditedModel]) -> AuditedModel:
    index = _whole(said)
    if index is None or not 0 <= index < len(models):
        raise ValueError(f"there is no model {words.name(said)}")
    return models[index]


def _result(entry: Any, models: Sequence[AuditedModel], problems: list[str]) -> Result:
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, found {type(entry).__name__}")
    result = Result(
        model=_model_at(entry.get("model"), models),
        audit=_text(entry, "audit"),
        title=_capital(_text(entry, "title", str(entry.get("audit")))),
        protocol=_text(entry, "protocol"),
        settings=_table(entry, "settings", problems),
        numbers={},
        rows=_whole(entry.get("rows")) or 0,
        skipped={},
        table=entry["table"] if isinstance(entry.get("table"), str) else None,
        shots=[],
        seed=_whole(entry.get("seed")),
        computed={},
    )
    for way, count in _table(entry, "computed", problems).items():
        result.computed[words.shortened(words.name(way), 200)] = _whole(count) or 0
    for number in _list(entry, "numbers", problems):
        try:
            measure = _measure(number)
            result.numbers[measure.key] = measure
        except (ValueError, TypeError) as error:
            problems.append(f"audit.json: a number of {result.what} cannot be used: {error}")
    for reason, count in _table(entry, "skipped", problems).items():
        result.skipped[words.name(reason)] = _whole(count) or 0
    for shot in _list(entry, "pictures", problems):
        try:
            result.shots.append(_shot(shot))
        except (ValueError, TypeError) as error:
            problems.append(f"audit.json: a picture of {result.what} cannot be used: {error}")
    return result


def _measure(entry: Any) -> Measure:
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, found {type(entry).__name__}")
    value = entry.get("value")
    if value is not None and finite_number(value) is None:
        raise ValueError(f"its value is {words.name(value)}, not a finite number")
    better = entry.get("better")
    key = _text(entry, "key")
    return Measure(
        key=key,
        label=_capital(_text(entry, "label", key)),
        value=finite_number(value),
        unit=_text(entry, "unit", ""),
        better=better if better in ("lower", "higher") else None,
        n=_whole(entry.get("n")) or 0,
        low=finite_number(entry.get("low")),
        high=finite_number(entry.get("high")),
    )


def _shot(entry: Any) -> Shot:
    files = entry.get("files") if isinstance(entry, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError("it names no files")
    if not all(isinstance(name, str) for name in files.values()):
        raise ValueError("a file name is not a string")
    image = entry.get("image")
    return Shot(
        files={words.name(key): name for key, name in files.items()},
        caption=words.name(entry.get("caption") or "(no caption)"),
        image=words.name(image) if image else "",
    )


def finite_number(value: Any) -> float | None:
    """A JSON number as a float; None if it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(entry: Json, key: str, default: str | None = None) -> str:
    """A name from the file, made harmless; an empty one stays empty."""
    value = entry.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is missing or no string")
    return words.name(value) if value else value


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(entry: Json, key: str, problems: list[str]) -> Json:
    return _of_kind(entry, key, dict, problems)


def _list(entry: Json, key: str, problems: list[str]) -> list[Any]:
    return _of_kind(entry, key, list, problems)


def _of_kind(entry: Json, key: str, kind: type[T], problems: list[str]) -> T:
    value = entry.get(key)
    if isinstance(value, kind):
        return value
    if value is not None:
        problems.append(f"audit.json: {key!r} cannot be used: it is no {kind.__name__}")
    return kind()


def _columns(text: str) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    words_in = set()
    for row in csv.DictReader(io.StringIO(text, newline="")):
        if row.get("skipped"):
            continue
        for key, cell in row.items():
            if not isinstance(key, str) or not isinstance(cell, str) or not cell:
                continue
            try:
                value = float(cell)
            except ValueError:
                words_in.add(key)
                continue
            if math.isfinite(value):
                columns.setdefault(key, []).append(value)
    return {key: values for key, values in columns.items() if key not in words_in}
