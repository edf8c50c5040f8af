"""Reading a run folder for the report: tolerant of what is missing, silent about nothing.

A report is made while a run goes on as well as after it, so every part may be absent. What is
absent is None; what is there but cannot be read is None too, and is named in ``problems``.
"""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from protofast.errors import RunFolderError
from protofast.files import sha256_of, standing

Json = dict[str, Any]
T = TypeVar("T")

_EXPLANATIONS_FORMAT = 1


@dataclass
class RunFiles:
    """What a run folder holds.

    Attributes:
        folder: The run folder.
        settings: ``settings.toml``.
        environment: The latest start in ``environment.json``.
        metrics: The lines of ``metrics.jsonl``.
        prototypes: The rows of ``prototypes/prototypes.json``.
        evaluation: ``evaluation/metrics.json``.
        confusion: ``evaluation/confusion.csv``.
        explanations: ``explanations/summary.json``.
        checkpoints: {"latest": name, "best": name}, as far as they exist.
        problems: One sentence for everything that is there but cannot be used.
    """

    folder: Path
    settings: Json | None = None
    environment: Json | None = None
    metrics: list[Json] = field(default_factory=list)
    prototypes: list[Json] | None = None
    evaluation: Json | None = None
    confusion: Confusion | None = None
    explanations: Json | None = None
    checkpoints: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def sha256(self, checkpoint: str) -> str | None:
        """The SHA-256 of a checkpoint's file, or None if it is gone."""
        return sha256_of(self.folder / "checkpoints" / f"{checkpoint}.safetensors")

    def picture(self, name: str) -> bytes | None:
        """A file of the explanations, or None if it is not there or lies outside their folder."""
        root = standing(self.folder / "explanations").resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            return None
        try:
            return path.read_bytes()
        except OSError:
            return None


@dataclass(frozen=True)
class Confusion:
    """counts[true][predicted]."""

    classes: list[str]
    counts: list[list[int]]


def read_run(folder: Path) -> RunFiles:
    """Reads a run folder.

    Raises:
        RunFolderError: There is no such folder, or it is not a run folder.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such run folder")
    if not (folder / "settings.toml").is_file():
        raise RunFolderError(
            f"{folder}: not a run folder (it has no settings.toml); "
            "give the folder that protofast train wrote"
        )
    run = RunFiles(folder)
    run.settings = _read(run, "settings.toml", lambda path: tomllib.loads(_text(path)))
    run.environment = _read(run, "environment.json", _environment)
    run.metrics = _metrics(run)
    run.prototypes = _read(run, "prototypes/prototypes.json", _prototypes)
    run.evaluation = _read(run, "evaluation/metrics.json", _object)
    run.confusion = _read(run, "evaluation/confusion.csv", _confusion)
    run.explanations = _read(run, "explanations/summary.json", _explanations)
    for which in ("latest", "best"):
        name = _read(run, f"checkpoints/{which}", lambda path: _text(path).strip())
        if name:
            run.checkpoints[which] = name
    return run


def _read(run: RunFiles, name: str, read: Callable[[Path], T]) -> T | None:
    folder, slash, file = name.partition("/")
    path = standing(run.folder / folder) / file if slash else run.folder / name
    if not path.is_file():
        return None
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        run.problems.append(f"{name} cannot be used: {' '.join(str(error).split())}")
        return None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _object(path: Path) -> Json:
    found = json.loads(_text(path))
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {type(found).__name__}")
    return found


def _environment(path: Path) -> Json:
    found = _object(path)
    starts = found.get("starts")
    if isinstance(starts, list) and starts and isinstance(starts[-1], dict):
        return {**starts[-1], "starts": len(starts)}
    return found


def _prototypes(path: Path) -> list[Json]:
    found = json.loads(_text(path))
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("expected a list of JSON objects")
    return found


def _explanations(path: Path) -> Json:
    found = _object(path)
    if found.get("format") != _EXPLANATIONS_FORMAT:
        raise ValueError(
            f"format {found.get('format')}, this version of protofast reads {_EXPLANATIONS_FORMAT}"
        )
    for key in ("classes", "images", "prototypes", "predictions", "checkpoint", "test"):
        if key not in found:
            raise ValueError(f"{key!r} is missing")
    return found


def _confusion(path: Path) -> Confusion:
    """A CSV table: the predicted classes in the first row, the true class in the first column."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    classes = rows[0][1:]
    counts = [[int(float(value)) for value in row[1:]] for row in rows[1:]]
    if len(counts) != len(classes) or any(len(row) != len(classes) for row in counts):
        raise ValueError(f"expected {len(classes)} rows of {len(classes)} numbers")
    return Confusion(classes, counts)


def _metrics(run: RunFiles) -> list[Json]:
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        return []
    rows, bad = [], 0
    lines = _text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            # A run that is being written, or was killed, may end in half a line.
            bad += number < len(lines)
            continue
        if isinstance(row, dict):
            rows.append(row)
    if bad:
        run.problems.append(f"metrics.jsonl has {bad} damaged line(s), which are left out")
    return rows
