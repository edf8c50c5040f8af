"""Images that are in the training data and in the test data at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Hashable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from protofast.data.image_set import ImageSet
from protofast.errors import DataError

Kind = Literal["file", "bytes", "pixels", "group"]
KINDS: tuple[Kind, ...] = ("file", "bytes", "pixels", "group")
_MEANING = {
    "file": "is the same file as",
    "bytes": "has the same content as",
    "pixels": "shows the same pixels as",
    "group": "is of the same group as",
}


class Leak(NamedTuple):
    """A pair that should not be."""

    kind: Kind
    train: str  # name of the training image
    test: str  # name of the test image
    detail: str  # the file, or the group


def check_leaks(
    train: ImageSet,
    test: ImageSet,
    *,
    allow: Collection[Kind] = (),
    pixels: bool | None = None,
) -> list[Leak]:
    """Looks for images and groups on both sides of a split.

    Files of equal size are compared by a hash of their bytes, so the check reads few of them.

    Args:
        train: Training images.
        test: Test images.
        allow: Kinds of leaks that are returned but do not raise.
        pixels: Compare the images themselves, as cropped and resized, too. None does so where both
            sides are in memory; True decodes every image, which takes as long as an epoch.

    Returns:
        For each test image its first partner of each kind (:func:`describe_leaks` puts them in
        words); a pair is listed under the first kind
        that applies, in the order file, bytes, pixels, group, and a group is listed once.

    Raises:
        DataError: There is a leak of a kind that is not allowed; the message names it.
    """
    unknown = set(allow) - set(KINDS)
    if unknown:
        raise ValueError(f"allow may hold {', '.join(KINDS)}, got {sorted(unknown)[0]!r}")
    leaks = _file_leaks(train, test)
    in_memory = all(isinstance(getattr(side, "pixels", None), Tensor) for side in (train, test))
    if pixels or (pixels is None and in_memory):
        known = {leak.test for leak in leaks}
        pairs = _pairs(train, test, lambda side, index: _pixel_hash(side, index))
        leaks += [
            Leak("pixels", train.names[i], test.names[j], "")
            for i, j in pairs
            if test.names[j] not in known
        ]
    leaks += _group_leaks(train, test)
    forbidden = [leak for leak in leaks if leak.kind not in allow]
    if forbidden:
        kinds = tuple(sorted({leak.kind for leak in forbidden}, key=KINDS.index))
        raise DataError(
            f"{describe_leaks(forbidden)}; remove one of each, or allow it with allow={kinds!r}"
        )
    return leaks


def describe_leaks(leaks: Sequence[Leak]) -> str:
    """What overlaps, with an example of each kind; ``leaks`` must not be empty."""
    kinds = sorted({leak.kind for leak in leaks}, key=KINDS.index)
    examples = []
    for kind in kinds:
        of_kind = [leak for leak in leaks if leak.kind == kind]
        first = of_kind[0]
        what = f"test image {first.test!r} {_MEANING[kind]} training image {first.train!r}"
        if kind == "group":
            what += f" ({first.detail!r})"
        more = f" and {len(of_kind) - 1} more like it" if len(of_kind) > 1 else ""
        examples.append(what + more)
    return f"training and test data overlap: {'; '.join(examples)}"


def _pairs(
    train: ImageSet, test: ImageSet, key: Callable[[ImageSet, int], Hashable | None]
) -> list[tuple[int, int]]:
    """(training image, test image) with equal keys; of several training images the first."""
    seen: dict[Hashable, int] = {}
    for index in range(len(train)):
        value = key(train, index)
        if value is not None:
            seen.setdefault(value, index)
    found = []
    for index in range(len(test)):
        value = key(test, index)
        if value is not None and value in seen:
            found.append((seen[value], index))
    return found


def _file_leaks(train: ImageSet, test: ImageSet) -> list[Leak]:
    def real_path(side: ImageSet, index: int) -> str | None:
        file = side.file(index)
        return None if file is None else os.path.realpath(file)

    leaks = [
        Leak("file", train.names[i], test.names[j], str(test.file(j)))
        for i, j in _pairs(train, test, real_path)
    ]
    same = {leak.test for leak in leaks}
    sizes = [
        {size for index in range(len(side)) if (size := _size(side, index)) is not None}
        for side in (train, test)
    ]
    common = sizes[0] & sizes[1]
    hashes: dict[Path, bytes] = {}

    def content(side: ImageSet, index: int) -> bytes | None:
        file = side.file(index)
        if file is None or _size(side, index) not in common:
            return None
        if file not in hashes:
            hashes[file] = _hash_file(file)
        return hashes[file]

    leaks += [
        Leak("bytes", train.names[i], test.names[j], str(test.file(j)))
        for i, j in _pairs(train, test, content)
        if test.names[j] not in same
    ]
    return leaks


def _size(side: ImageSet, index: int) -> int | None:
    file = side.file(index)
    if file is None:
        return None
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None


def _hash_file(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None


def _pixel_hash(side: ImageSet, index: int) -> bytes:
    image = side.image(index)
    shape = str(tuple(image.shape)).encode()
    return hashlib.sha256(shape + image.contiguous().numpy().tobytes()).digest()


def _group_leaks(train: ImageSet, test: ImageSet) -> list[Leak]:
    if train.groups is None or test.groups is None:
        return []
    first: dict[str, int] = {}
    for index, group in enumerate(train.groups):
        first.setdefault(group, index)
    leaks: dict[str, Leak] = {}
    for index, group in enumerate(test.groups):
        if group in first and group not in leaks:
            leaks[group] = Leak("group", train.names[first[group]], test.names[index], group)
    return list(leaks.values())
