"""Which images a run has seen, as checksums in its checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from protofast.data import ImageSet, Splits
from protofast.errors import DataError

_CALLED = {"train": "training", "project": "projection", "test": "test"}


def checksum(images: ImageSet) -> str:
    """Of the names and labels of an image set, in its order; the pixels are not looked at."""
    said = json.dumps([images.names, images.labels.tolist(), images.classes])
    return hashlib.sha256(said.encode()).hexdigest()


def checksums(data: Splits) -> dict[str, str]:
    """The checksum of each set, by its name."""
    return {name: checksum(getattr(data, name)) for name in _CALLED}


def other_images(known: Mapping[str, str], **sets: ImageSet) -> str | None:
    """What to say of sets that are others than those that a run was trained and tested on.

    Args:
        known: From the run's checkpoint.
        sets: By name: ``train``, ``project``, ``test``, or some of them.
    """
    return other_checksums(known, {name: checksum(images) for name, images in sets.items()})


def other_checksums(known: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The same, of sets whose checksums are known already."""
    others = [_CALLED[name] for name in now if known.get(name, now[name]) != now[name]]
    if not others:
        return None
    return f"the {' and '.join(others)} images are others than the run's: names or labels differ"


def check_images(known: Mapping[str, str], **sets: ImageSet) -> None:
    """Makes sure that sets are those of a run.

    Args:
        known: From the run's checkpoint.
        sets: By name, as for :func:`other_images`.

    Raises:
        DataError: They are not.
    """
    others = other_images(known, **sets)
    if others:
        raise DataError(f"{others}; restore the data that the run was trained on")
