"""CUB-200-2011 (Wah et al. 2011) in its own file layout.

``images.txt``, ``classes.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` (1 = training)
and ``bounding_boxes.txt`` (x, y, width, height) beside the folder ``images/``. The official split
is 5,994 training and 5,794 test images; images are cropped to their boxes, as in ProtoPNet.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from protofast.data.decode import Resize
from protofast.data.image_set import Box, FileEntry, FileImageSet, Splits, square
from protofast.data.index_files import (
    choose_classes,
    read_table,
    require_folder,
    require_images,
)
from protofast.errors import DataError

_INDEX = (
    "images.txt, classes.txt, image_class_labels.txt, train_test_split.txt and the folder images/"
)


def open_cub(
    root: str | Path,
    *,
    size: tuple[int, int] | int | None,
    classes: int | Sequence[str] | None = None,
    crop: bool = True,
    channels: int = 3,
    resize: Resize = "stretch",
) -> Splits:
    """Opens a folder in the layout of CUB-200-2011; nothing is decoded yet.

    Args:
        root: The folder that holds ``images.txt``.
        size: (S, T), or one number for squares, or None to keep each image's own size.
        classes: Names of the classes to use (``001.Black_footed_Albatross``), how many of the
            first, or None for all.
        crop: Crop to the bounding boxes.
        channels: 1 or 3.
        resize: See :func:`protofast.data.resize_image`.

    Returns:
        The official split; names are the paths in ``images.txt``.

    Raises:
        DataError: A file or image is missing, a line is malformed, or a class has no image on one
            side.
    """
    folder = require_folder(Path(root), f"the CUB-200-2011 data set: {_INDEX}")
    names = read_table(folder / "classes.txt", "<class id> <class name>", _text)
    paths = read_table(folder / "images.txt", "<image id> <path under images/>", _text)
    _require_distinct(folder / "images.txt", paths)
    labels = read_table(folder / "image_class_labels.txt", "<image id> <class id>", int)
    training = read_table(folder / "train_test_split.txt", "<image id> <1 = training, 0>", _flag)
    boxes = (
        read_table(folder / "bounding_boxes.txt", "<image id> <x> <y> <width> <height>", _box)
        if crop
        else {}
    )
    _require_same_images(folder, paths, "image_class_labels.txt", labels)
    _require_same_images(folder, paths, "train_test_split.txt", training)
    if crop:
        _require_same_images(folder, paths, "bounding_boxes.txt", boxes)
    kept = _kept_classes(folder, names, classes)
    entries: tuple[list[FileEntry], list[FileEntry]] = ([], [])
    present = _present_files(folder / "images", set(paths.values()))
    for image, path in paths.items():
        if labels[image] not in names:
            raise DataError(
                f"{folder / 'image_class_labels.txt'}: image {image} has class {labels[image]}, "
                "which classes.txt does not list"
            )
        if path not in present:
            raise DataError(
                f"{folder / 'images' / path}: no such file, but images.txt lists it as image "
                f"{image}; unpack the data set again, or remove the line"
            )
        if labels[image] in kept:
            entry = FileEntry(folder / "images" / path, path, kept[labels[image]], boxes.get(image))
            entries[0 if training[image] else 1].append(entry)
    chosen = [names[identifier] for identifier in kept]
    for side, split in zip(entries, ("training", "test"), strict=True):
        counts = Counter(entry.label for entry in side)
        require_images([counts[k] for k in range(len(chosen))], chosen, folder, split)
    shape = square(size)
    train, test = (
        FileImageSet(
            side,
            classes=chosen,
            size=shape,
            channels=channels,
            resize=resize,
            description=f"CUB-200-2011 layout in {folder.name}, official split"
            + (", cropped to boxes" if crop else ""),
        )
        for side in entries
    )
    return Splits(train, train, test)


def _require_same_images(
    folder: Path, paths: dict[int, str], file: str, listed: Collection[int]
) -> None:
    """The index files speak of the same images; one that lacks some may have been cut short."""
    missing = next((image for image in paths if image not in listed), None)
    if missing is not None:
        raise DataError(
            f"{folder / file}: no line for image {missing} ({paths[missing]}) of images.txt; the "
            "file may be cut short"
        )
    extra = next((image for image in listed if image not in paths), None)
    if extra is not None:
        raise DataError(
            f"{folder / 'images.txt'}: no line for image {extra} of {file}; the file may be cut "
            "short"
        )


def _require_distinct(file: Path, paths: dict[int, str]) -> None:
    first: dict[str, int] = {}
    for image, path in paths.items():
        if path in first:
            raise DataError(f"{file}: images {first[path]} and {image} are both {path}")
        first[path] = image


def _kept_classes(
    folder: Path, names: dict[int, str], wanted: int | Sequence[str] | None
) -> dict[int, int]:
    """The label of each class id that is used."""
    identifiers = list(names)
    chosen = choose_classes(
        list(names.values()),
        wanted if wanted is None or isinstance(wanted, int) else list(wanted),
        folder / "classes.txt",
    )
    return {identifiers[position]: label for label, position in enumerate(chosen)}


def _present_files(images: Path, listed: set[str]) -> set[str]:
    """Those of the listed paths that are files, found with one directory listing per class."""
    present: set[str] = set()
    for parent in sorted({path.rpartition("/")[0] for path in listed}):
        folder = images / parent
        if folder.is_dir():
            prefix = f"{parent}/" if parent else ""
            present.update(prefix + entry.name for entry in folder.iterdir())
    return present & listed


def _text(rest: str) -> str:
    if not rest:
        raise ValueError("nothing after the number")
    return rest


def _flag(rest: str) -> bool:
    if rest not in ("0", "1"):
        raise ValueError("neither 0 nor 1")
    return rest == "1"


def _box(rest: str) -> Box:
    x, y, width, height = (float(value) for value in rest.split())
    if not (width > 0 and height > 0 and all(map(math.isfinite, (x, y, width, height)))):
        raise ValueError("a box needs a width and a height")
    return (x, y, x + width, y + height)
