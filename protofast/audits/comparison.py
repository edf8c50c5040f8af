"""Models side by side: by how much a number differs between two, on the images both have one for.

Two intervals that overlap say little: both numbers hold of the same images, and most of what makes
each of them uncertain is common to both. So the images are compared one by one, and the interval is
that of the mean difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any, NamedTuple

from protofast.audits.audit import Number
from protofast.audits.statistics import mean_number, paired_shares

_SHARED = ("audit", "protocol", "settings")  # what must be alike where models are compared


class Measured(NamedTuple):
    """What came out for one model: its entry in ``audit.json``, and its `Audit.values`."""

    entry: Mapping[str, Any]
    values: Mapping[str, Mapping[int, float]]


def comparisons(
    measured: Sequence[Measured], tell: Callable[[int, int], None] = lambda one, other: None
) -> list[dict[str, Any]]:
    """Every number of every two models under one audit, protocol and settings.

    `tell` is called with the positions of two models before they are compared, which takes some
    tenths of a second for each number of thousands of images.

    An entry has `audit`, `protocol`, `models` (two positions), the fields of a `Number`, and
    `differ`. Its `value` is the second model's less the first's, in points where these are per
    cent; `n` counts the images that both have a value for, `differ` those of them on which the
    models differ at all; `low` and `high` are the ends of the 95 % interval: the bootstrap's of the
    mean difference, and for shares, where it may have no width, that of `paired_shares`.
    """
    found: list[dict[str, Any]] = []
    for one, other in combinations(measured, 2):
        if all(one.entry[key] == other.entry[key] for key in _SHARED):
            tell(one.entry["model"], other.entry["model"])
            found += _of_two(one, other)
    return found


def _of_two(one: Measured, other: Measured) -> list[dict[str, Any]]:
    entries = []
    for number in one.entry["numbers"]:
        first, second = (each.values.get(number["key"], {}) for each in (one, other))
        pairs = [(first[image], second[image]) for image in sorted(first) if image in second]
        if pairs:
            difference = _difference(number, pairs)
            entries.append(
                {
                    "audit": one.entry["audit"],
                    "protocol": one.entry["protocol"],
                    "models": [one.entry["model"], other.entry["model"]],
                    **asdict(difference),
                    "differ": sum(before != after for before, after in pairs),
                }
            )
    return entries


def _difference(number: Mapping[str, Any], pairs: Sequence[tuple[float, float]]) -> Number:
    """Of one number, from the values of both models for each image."""
    said, better = (number["key"], number["label"]), number["better"]
    if number["unit"] == "%" and all(value in (0, 100) for pair in pairs for value in pair):
        first, second = ([value == 100 for value in values] for values in zip(*pairs, strict=True))
        return paired_shares(*said, first, second, better=better)
    unit = number["unit"].replace("%", "points")
    return mean_number(*said, [after - before for before, after in pairs], unit=unit, better=better)
