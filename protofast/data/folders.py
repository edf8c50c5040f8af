"""Images in class folders, split at random, by a CSV file, or by their folders.

Three layouts, found by looking: ``root/train/<class>/…`` beside ``root/test/<class>/…``; a training
and a test folder of class folders; and ``root/<class>/…``, which is split here. Folders may be
nested below the class folders. Only files with the suffix of an image are looked at.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from protofast.data.decode import IMAGE_SUFFIXES, Resize
from protofast.data.groups import GroupTable, Row, read_groups, split_groups
from protofast.data.image_set import FileEntry, FileImageSet, Splits, square
from protofast.data.index_files import require_folder, require_images
from protofast.data.randomness import hash_keys
from protofast.errors import DataError

_SPLIT = 5  # purpose of these random numbers; see randomness.py
_SIDES = ("train", "test")
_OTHER_SIDES = frozenset(("val", "valid", "validation", "dev"))


def open_folders(
    root: str | Path,
    test_root: str | Path | None = None,
    *,
    size: tuple[int, int] | int | None,
    channels: int = 3,
    groups: str | Path | None = None,
    allow_shared_groups: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
    resize: Resize = "stretch",
) -> Splits:
    """Opens images in class folders; nothing is decoded yet.

    Args:
        root: A folder of class folders, or one that holds ``train/`` and ``test/`` with class
            folders.
        test_root: A folder of class folders with the test images; ``root`` holds the training
            images.
        size: (S, T), or one number for squares, or None to keep each image's own size.
        channels: 1 or 3.
        groups: A CSV file with a line per image: ``path`` (relative to root; or ``file``),
            ``group`` and optionally ``split`` (train or test). All images of a group (say, of a
            patient) then land on one side. Where the folders give the sides, ``split`` must agree.
        allow_shared_groups: Let groups be on both sides where the folders or the CSV file say so.
        test_fraction: Share of each class that becomes test images where nothing else decides.
        seed: Chooses among the possible splits. An image keeps its place when others are added as
            far as the fraction allows.
        resize: See :func:`protofast.data.resize_image`.

    Returns:
        The split; names are paths relative to root; ``description`` says how it was made.

    Raises:
        DataError: A folder is missing or empty, a class has too few images or groups to be split, a
            group is on both sides, or the CSV file is malformed; the message names the place.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    folder = require_folder(Path(root), "one folder of images per class")
    table = None if groups is None else read_groups(Path(groups))
    pair = _given_sides(folder, None if test_root is None else Path(test_root))
    if pair is None:
        classes, entries = _scan(folder, folder, None)
        rows = {} if table is None else table.match([(folder, entries)])
        entries = _with_groups(entries, rows)
        sides, how = _split(entries, classes, table, rows, test_fraction, seed, folder)
    else:
        classes, train = _scan(pair[0], folder, None)
        _, test = _scan(pair[1], folder if test_root is None else pair[1], classes)
        rows = {} if table is None else table.match([(pair[0], train), (pair[1], test)])
        if table is not None:
            _require_same_sides(table, rows, train, test)
        sides = (_with_groups(train, rows), _with_groups(test, rows))
        how = f"split as in the folders {pair[0].name} and {pair[1].name}"
    _check_sides(sides, classes, folder)
    if not allow_shared_groups:
        _refuse_shared_groups(sides, folder)
    text = f"class folders in {folder.name}, {how}"
    train_set, test_set = (
        FileImageSet(
            side,
            classes=classes,
            size=square(size),
            channels=channels,
            resize=resize,
            description=text,
        )
        for side in sides
    )
    return Splits(train_set, train_set, test_set)


def _given_sides(folder: Path, test_root: Path | None) -> tuple[Path, Path] | None:
    """The folders of the two sides if the layout has them."""
    if test_root is not None:
        return folder, require_folder(test_root, "one folder of test images per class")
    inside = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    if inside >= set(_SIDES):
        for side in _SIDES:
            require_folder(folder / side, "one folder of images per class")
        unused = sorted(name for name in inside - set(_SIDES) if not _is_hidden(name))
        if unused:
            warnings.warn(
                f"{folder}: images in {', '.join(unused)} are not used, only those in train and "
                "test",
                stacklevel=3,
            )
        return folder / "train", folder / "test"
    if inside and inside <= {*_SIDES, *_OTHER_SIDES}:
        raise DataError(
            f"{folder}: holds {', '.join(sorted(inside))}; expected train/ and test/, or one "
            "folder per class; name the two folders to use as root and test_root"
        )
    return None


def _scan(side: Path, root: Path, known: Sequence[str] | None) -> tuple[list[str], list[FileEntry]]:
    """The classes in a folder of class folders and their images, both sorted by name."""
    folders = sorted(
        entry.name for entry in os.scandir(side) if entry.is_dir() and not _is_hidden(entry.name)
    )
    if not folders:
        raise DataError(f"{side}: has no folders in it; expected one folder of images per class")
    if known is None and len(folders) < 2:
        raise DataError(
            f"{side}: only one class folder ({folders[0]}); expected one for each of at least two "
            "classes"
        )
    strange = [name for name in folders if known is not None and name not in known]
    if strange:
        raise DataError(
            f"{side / strange[0]}: a class that the training images do not have; "
            f"theirs are {', '.join((known or ())[:5])}"
        )
    classes = list(folders if known is None else known)
    entries = []
    for name in folders:
        files = _images_below(side / name)
        label = classes.index(name)
        entries += [FileEntry(file, file.relative_to(root).as_posix(), label) for file in files]
    return classes, entries


def _is_hidden(folder: str) -> bool:
    """What thumbnailers, archivers and editors leave: .thumbnails, __MACOSX and the like."""
    return folder.startswith((".", "__"))


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror or error})") from None


def _images_below(folder: Path) -> list[Path]:
    """The image files below a folder, sorted; one that is linked into itself is entered once."""
    found: list[Path] = []
    other = None
    visited: set[str] = set()
    for place, inside, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(place)
        if real in visited:
            inside.clear()
            continue
        visited.add(real)
        inside[:] = sorted(name for name in inside if not _is_hidden(name))
        for file in files:
            if file.startswith("."):
                continue
            if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:
                found.append(Path(place, file))
            else:
                other = file
    if not found:
        seen = f" (but {other})" if other else ""
        raise DataError(
            f"{folder}: no image files in this class folder{seen}; expected files that end with "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return sorted(found)


def _with_groups(entries: list[FileEntry], rows: dict[Path, Row]) -> list[FileEntry]:
    if not rows:
        return entries
    return [replace(entry, group=rows[entry.path].group) for entry in entries]


def _require_same_sides(
    table: GroupTable, rows: dict[Path, Row], train: list[FileEntry], test: list[FileEntry]
) -> None:
    """A CSV file may repeat what the folders say of the sides, not contradict it."""
    for side, entries in zip(_SIDES, (train, test), strict=True):
        for entry in entries if table.has_split else ():
            row = rows[entry.path]
            if row.test != (side == "test"):
                raise DataError(
                    f"{table.file}, line {row.line}: {entry.name} is said to be a "
                    f"{_SIDES[bool(row.test)]} image, but lies in the folder of the {side} images; "
                    "correct the line, move the image, or leave the column split out"
                )


def _split(
    entries: list[FileEntry],
    classes: list[str],
    table: GroupTable | None,
    rows: dict[Path, Row],
    fraction: float,
    seed: int,
    folder: Path,
) -> tuple[tuple[list[FileEntry], list[FileEntry]], str]:
    """Training and test images, and how they were chosen."""
    if table is not None and table.has_split:
        chosen = [bool(rows[entry.path].test) for entry in entries]
        how = f"split as in {table.file.name}"
    elif table is not None:
        try:
            chosen = split_groups(entries, classes, fraction, seed)
        except DataError as error:
            raise DataError(f"{table.file}: {error}") from None
        count = len({entry.group for entry in entries})
        how = f"{count} groups, none on both sides, seed {seed}"
    else:
        chosen = _stratified(entries, classes, fraction, seed, folder)
        how = f"at random within each class, seed {seed}"
    sides = (
        [entry for entry, test in zip(entries, chosen, strict=True) if not test],
        [entry for entry, test in zip(entries, chosen, strict=True) if test],
    )
    shares = []
    for label in range(len(classes)):
        tested = sum(entry.label == label for entry in sides[1])
        shares.append(tested / max(1, tested + sum(entry.label == label for entry in sides[0])))
    return sides, (
        f"{how}, {len(sides[1]) / len(entries):.1%} test images "
        f"({min(shares):.1%} to {max(shares):.1%} of a class)"
    )


def _stratified(
    entries: list[FileEntry], classes: list[str], fraction: float, seed: int, folder: Path
) -> list[bool]:
    """Which images become test images: ``fraction`` of each class, at least one, never all."""
    names = np.array([zlib.crc32(entry.name.encode()) for entry in entries], dtype=np.int64)
    order = np.argsort(hash_keys(_SPLIT, seed, names), kind="stable")
    counts = Counter(entry.label for entry in entries)
    left = {}
    for label, name in enumerate(classes):
        if counts[label] < 2:
            raise DataError(
                f"{folder}: class {name!r} has one image, which cannot be both for training and "
                "for testing; add images, or remove the class"
            )
        left[label] = min(counts[label] - 1, max(1, round(counts[label] * fraction)))
    chosen = [False] * len(entries)
    for position in order.tolist():
        label = entries[position].label
        chosen[position] = left[label] > 0
        left[label] -= 1
    return chosen


def _check_sides(
    sides: tuple[list[FileEntry], list[FileEntry]], classes: list[str], folder: Path
) -> None:
    """Every class needs a training image, and should have a test image."""
    counts = [Counter(entry.label for entry in side) for side in sides]
    require_images([counts[0][k] for k in range(len(classes))], classes, folder, "training")
    if not sides[1]:
        raise DataError(f"{folder}: no test images; expected some of each class")
    untested = [name for label, name in enumerate(classes) if counts[1][label] == 0]
    if untested:
        warnings.warn(
            f"{folder}: class {untested[0]!r} has no test image"
            + (f", nor have {len(untested) - 1} others" if len(untested) > 1 else ""),
            stacklevel=3,
        )


def _refuse_shared_groups(sides: tuple[list[FileEntry], list[FileEntry]], folder: Path) -> None:
    train, test = ({entry.group for entry in side if entry.group is not None} for side in sides)
    both = sorted(train & test)
    if both:
        raise DataError(
            f"{folder}: group {both[0]!r} is both in the training and in the test images "
            f"({len(both)} such groups); a group must be on one side"
        )
