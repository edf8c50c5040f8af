"""Which images belong together, say to one patient, and splits that keep them together."""

from __future__ import annotations

import csv
import io
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protofast.data.image_set import FileEntry
from protofast.data.index_files import read_text
from protofast.data.randomness import hash_keys
from protofast.errors import DataError

_GROUPS = 6  # purpose of these random numbers; see randomness.py
_COLUMNS = "path (or file), group and optionally split (train or test)"
_MISSING = 10.0  # cost of a class that is absent from one side; any imbalance costs less
_SWEEPS = 20


@dataclass(frozen=True)
class Row:
    """A line of a CSV file on groups."""

    line: int
    group: str
    test: bool | None  # None: the file does not say


@dataclass(frozen=True)
class GroupTable:
    """The lines of a CSV file, by image.

    Attributes:
        file: The CSV file.
        rows: By the path as it stands in the file, with forward slashes.
        has_split: Whether the file says which side each image is on.
    """

    file: Path
    rows: dict[str, Row]
    has_split: bool

    def match(self, sides: Sequence[tuple[Path, Sequence[FileEntry]]]) -> dict[Path, Row]:
        """The line of each image, by its path.

        An image is looked up by its whole path, by the name of its root folder and its path below
        it, by that path alone, and by its file name if no other image has it.

        Args:
            sides: Root folders with the images below them.

        Raises:
            DataError: There is no line for an image, or one line fits two.
        """
        alike = Counter(entry.path.name for _, entries in sides for entry in entries)
        found: dict[Path, Row] = {}
        images: dict[str, Path] = {}
        for root, entries in sides:
            for entry in entries:
                below = entry.path.relative_to(root).as_posix()
                names = [entry.path.absolute().as_posix(), entry.path.as_posix()]
                names += [f"{root.absolute().name}/{below}", entry.name, below, entry.path.name]
                name = next((name for name in names if name in self.rows), None)
                if name is None:
                    raise DataError(
                        f"{self.file}: no line for the image {entry.name} of {root}; paths are "
                        "looked up relative to that folder, then by file name"
                    )
                several = name == entry.path.name and alike[name] > 1
                if several or images.setdefault(name, entry.path) != entry.path:
                    raise DataError(
                        f"{self.file}, line {self.rows[name].line}: {name} fits several images "
                        f"({entry.path} is one); give more of the path"
                    )
                found[entry.path] = self.rows[name]
        return found


def read_groups(file: Path) -> GroupTable:
    """Reads a CSV file (separated by commas, semicolons or tabs) with a header line.

    Raises:
        DataError: The file is missing, lacks a column, or a line is malformed; file and line are
            named.
    """
    text = read_text(file, f"a CSV file with the columns {_COLUMNS}")
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: dict[str, Row] = {}
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        place = next((columns.index(name) for name in ("path", "file") if name in columns), None)
        if place is None or "group" not in columns:
            raise DataError(
                f"{file}, line 1: expected the columns {_COLUMNS}, got "
                f"{', '.join(columns) or 'nothing'}"
            )
        group, split = columns.index("group"), None
        if "split" in columns:
            split = columns.index("split")
        for fields in reader:
            if any(field.strip() for field in fields):
                name, row = _parse(fields, columns, (place, group, split), file, reader.line_num)
                if name in rows:
                    raise DataError(
                        f"{file}, line {reader.line_num}: {name} is listed twice "
                        f"(first in line {rows[name].line})"
                    )
                rows[name] = row
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not a CSV line ({error})") from None
    if not rows:
        raise DataError(f"{file}: no lines after the header; expected one per image")
    return GroupTable(file, rows, split is not None)


def _parse(
    fields: list[str],
    columns: list[str],
    places: tuple[int, int, int | None],
    file: Path,
    line: int,
) -> tuple[str, Row]:
    if len(fields) != len(columns):
        raise DataError(
            f"{file}, line {line}: expected {len(columns)} fields ({', '.join(columns)}), got "
            f"{len(fields)}"
        )
    name, group = (fields[place].strip() for place in places[:2])
    name = name.replace("\\", "/").removeprefix("./")
    if not name or not group:
        raise DataError(f"{file}, line {line}: the {'group' if name else 'path'} is empty")
    if places[2] is None:
        return name, Row(line, group, None)
    split = fields[places[2]].strip().lower()
    if split not in ("train", "test"):
        raise DataError(f"{file}, line {line}: split must be train or test, got {split!r}")
    return name, Row(line, group, split == "test")


def split_groups(
    entries: list[FileEntry], classes: list[str], fraction: float, seed: int
) -> list[bool]:
    """Chooses whole groups for testing, so that each class gives about ``fraction`` of its images.

    Groups are taken in a random order if that brings the shares of the classes closer to the
    fraction; then single groups change sides as long as that helps.

    Args:
        entries: The images, with groups.
        classes: Class names.
        fraction: Wished share of test images.
        seed: Chooses among the possible splits.

    Returns:
        For each image whether it is a test image.

    Raises:
        DataError: Some class cannot be on both sides.
    """
    names = sorted({str(entry.group) for entry in entries})
    position = {name: k for k, name in enumerate(names)}
    counts = np.zeros((len(names), len(classes)))
    for entry in entries:
        counts[position[str(entry.group)], entry.label] += 1
    _require_two_groups(counts, names, classes)
    keys = np.array([zlib.crc32(name.encode()) for name in names], dtype=np.int64)
    order = np.argsort(hash_keys(_GROUPS, seed, keys), kind="stable")
    test = _balanced(counts, order, fraction)
    tested, total = counts[test].sum(0), counts.sum(0)
    for label, name in enumerate(classes):
        if not 0 < tested[label] < total[label]:
            raise DataError(
                f"class {name!r} cannot be on both sides of a split that keeps groups together: "
                f"its {int((counts[:, label] > 0).sum())} groups are needed by other classes; add "
                "groups, or give the split in the CSV file"
            )
    return [bool(test[position[str(entry.group)]]) for entry in entries]


def _require_two_groups(
    counts: npt.NDArray[np.float64], names: list[str], classes: list[str]
) -> None:
    for label, name in enumerate(classes):
        groups = np.nonzero(counts[:, label])[0]
        if len(groups) < 2:
            raise DataError(
                f"class {name!r} has images of one group only ({names[groups[0]]!r}), so it cannot "
                "be trained and tested without that group on both sides; add images of another "
                "group, or remove the class"
            )


def _balanced(
    counts: npt.NDArray[np.float64], order: npt.NDArray[np.intp], fraction: float
) -> npt.NDArray[np.bool_]:
    """Which groups are tested [groups]; ``counts`` are images per group and class."""
    total = counts.sum(0)
    shares = counts / total

    def costs(tested: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The imbalance for each row of shares per class [k, classes]."""
        # Rounding must not make a class look present on a side where it is not.
        absent = (tested < 0.5 / total) | (tested > 1 - 0.5 / total)
        cost: npt.NDArray[np.float64] = ((tested - fraction) ** 2 + _MISSING * absent).sum(1)
        return cost

    test = np.zeros(len(counts), dtype=bool)
    tested = np.zeros(counts.shape[1])
    for _ in range(_SWEEPS):
        changed = False
        for group in order:
            other = tested + (-shares[group] if test[group] else shares[group])
            now, then = costs(np.stack([tested, other]))
            if then < now - 1e-12:
                test[group], tested, changed = not test[group], other, True
        if not changed:
            break
    return test
