"""Stanford Cars (Krause et al. 2013) in its own file layout.

The folders ``cars_train/`` and ``cars_test/`` with the photographs, and MATLAB files with a struct
array of file name, class and bounding box per image: ``devkit/cars_train_annos.mat``,
``cars_test_annos_withlabels.mat`` (in ``devkit/`` or beside it) and ``devkit/cars_meta.mat`` with
the class names. The official split is 8,144 training and 8,041 test images.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protofast.data.decode import Resize
from protofast.data.image_set import FileEntry, FileImageSet, Splits, square
from protofast.data.index_files import choose_classes, require_folder, require_images
from protofast.errors import DataError, InstallError

_LAYOUT = (
    "cars_train/, cars_test/, devkit/cars_train_annos.mat, devkit/cars_meta.mat and "
    "cars_test_annos_withlabels.mat"
)
_FIELDS = ("fname", "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def open_cars(
    root: str | Path,
    *,
    size: tuple[int, int] | int | None,
    classes: int | Sequence[str] | None = None,
    crop: bool = True,
    channels: int = 3,
    resize: Resize = "stretch",
) -> Splits:
    """Opens a folder in the layout of Stanford Cars; nothing is decoded yet.

    Args:
        root: The folder that holds ``cars_train/``.
        size: (S, T), or one number for squares, or None to keep each image's own size.
        classes: Names of the classes to use (``AM General Hummer SUV 2000``), how many of the
            first, or None for all.
        crop: Crop to the bounding boxes.
        channels: 1 or 3.
        resize: See :func:`protofast.data.resize_image`.

    Returns:
        The official split; names are paths such as ``cars_train/00001.jpg``.

    Raises:
        DataError: A file or image is missing or malformed, or a class has no image on one side.
        InstallError: scipy, which reads the MATLAB files, is not installed.
    """
    folder = require_folder(Path(root), f"the Stanford Cars data set: {_LAYOUT}")
    devkit = folder / "devkit" if (folder / "devkit").is_dir() else folder
    names = _class_names(devkit / "cars_meta.mat")
    wanted = classes if classes is None or isinstance(classes, int) else list(classes)
    kept = choose_classes(names, wanted, devkit / "cars_meta.mat")
    labels = {position + 1: label for label, position in enumerate(kept)}
    chosen = [names[position] for position in kept]
    sides = []
    for split, file, images in (
        ("training", devkit / "cars_train_annos.mat", "cars_train"),
        ("test", _test_annotations(folder, devkit), "cars_test"),
    ):
        entries = _entries(file, folder, images, labels, len(names), crop)
        counts = Counter(entry.label for entry in entries)
        require_images([counts[k] for k in range(len(chosen))], chosen, folder, split)
        sides.append(
            FileImageSet(
                entries,
                classes=chosen,
                size=square(size),
                channels=channels,
                resize=resize,
                description="Stanford Cars, official split"
                + (", cropped to boxes" if crop else ""),
            )
        )
    return Splits(sides[0], sides[0], sides[1])


def _class_names(file: Path) -> list[str]:
    names = _read_mat(file, "class_names")
    return [str(name) for name in ([names] if isinstance(names, str) else names)]


def _test_annotations(folder: Path, devkit: Path) -> Path:
    name = "cars_test_annos_withlabels.mat"
    for candidate in (devkit / name, folder / name):
        if candidate.is_file():
            return candidate
    hint = (
        "; cars_test_annos.mat, which is there, has no classes"
        if (devkit / "cars_test_annos.mat").is_file()
        else ""
    )
    raise DataError(f"{devkit / name}: missing; the classes of the test images are in it{hint}")


def _entries(
    file: Path, folder: Path, images: str, labels: dict[int, int], classes: int, crop: bool
) -> list[FileEntry]:
    """The images of one annotation file that belong to a class that is used."""
    present = _file_names(folder / images)
    entries = []
    for number, row in enumerate(_read_rows(file), start=1):
        try:
            name = str(row["fname"])
            identifier = int(row["class"])
            x1, y1, x2, y2 = (float(row[field]) for field in _FIELDS[2:])
            if not all(map(math.isfinite, (x1, y1, x2, y2))):
                raise ValueError("a box needs finite corners")
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{file}, annotation {number}: expected the fields {', '.join(_FIELDS)}, got "
                f"{row!r}"
            ) from None
        if not 1 <= identifier <= classes:
            raise DataError(
                f"{file}, annotation {number}: class {identifier}, but cars_meta.mat names 1 … "
                f"{classes}"
            )
        if name not in present:
            raise DataError(
                f"{folder / images / name}: no such file, but annotation {number} of {file.name} "
                "lists it; unpack the data set again"
            )
        if identifier in labels:
            # MATLAB counts pixels from 1 and includes both ends.
            box = (x1 - 1, y1 - 1, x2, y2) if crop else None
            path = folder / images / name
            entries.append(FileEntry(path, f"{images}/{name}", labels[identifier], box))
    return entries


def _file_names(folder: Path) -> set[str]:
    require_folder(folder, "the photographs of Stanford Cars")
    return set(os.listdir(folder))


def _read_rows(file: Path) -> list[dict[str, Any]]:
    rows = _read_mat(file, "annotations")
    return [rows] if isinstance(rows, dict) else list(rows)


def _read_mat(file: Path, variable: str) -> Any:
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise InstallError(
            f"{file}: reading MATLAB files needs scipy; install it with pip install "
            "'protofast[all]'"
        ) from None
    if not file.is_file():
        raise DataError(f"{file}: missing; the Stanford Cars data set consists of {_LAYOUT}")
    try:
        content = loadmat(file, simplify_cells=True)
    except Exception as error:  # scipy raises nearly anything on a damaged file
        raise DataError(
            f"{file}: not a readable MATLAB file ({error}); unpack the data set again"
        ) from None
    if variable not in content:
        raise DataError(f"{file}: expected the variable {variable!r} in it, which is not there")
    return content[variable]
