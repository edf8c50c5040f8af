"""What an audit is: units of work on a trained model, rows of results, numbers, pictures.

An audit is measured unit by unit. A unit is a fixed list of images, its result a list of rows (one
dictionary per image, or per image and prototype), which does not depend on any other unit (but for
last digits, where several go through a model together): so an interrupted audit goes on where it
was, and its numbers are made from the rows of all units at the end. Whatever can go wrong with an
image (a flat map, no cell left to attack) is a row with a `skipped` that says why, and is counted;
nothing is left out silently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from protofast.data import ImageSet
from protofast.data.randomness import permutation
from protofast.models import PrototypeModel

UNIT = 16  # images of a unit of work; what an audit that is interrupted does again
SUBSET = 10  # purpose of the random numbers that choose an audit's images; see data/randomness.py

Row = dict[str, Any]
"""JSON values by column: always `image` (position) and `name`; `skipped` where nothing came out."""

Protocol = Literal["paper", "released", "targeted"]


class AuditSettings(BaseModel):
    """Settings of an audit under one protocol; frozen, unknown keys are errors.

    Attributes:
        protocol: Which protocol these are the settings of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    protocol: Protocol = "paper"


SettingsT = TypeVar("SettingsT", bound=AuditSettings)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained model and the images it is audited on.

    Attributes:
        name: What to call the model.
        model: In eval mode, on the device to compute on, its parameters without gradients.
        images: The test images, of one size.
        predictions: int64 [n], the class the model names for each image as it is; on the CPU.
        correct_in_all: bool [n], whether every model of the same audit names the image rightly.
        seed: Key of all random numbers.
        batch_size: Images per forward pass at most.
        facts: What is known of the run: its settings as a nested mapping, empty for other models.
    """

    name: str
    model: PrototypeModel
    images: ImageSet
    predictions: Tensor
    correct_in_all: Tensor
    seed: int = 0
    batch_size: int = 64
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.prototypes.device

    @property
    def labels(self) -> Tensor:
        """int64 [n], on the CPU."""
        return self.images.labels

    @property
    def correct(self) -> Tensor:
        """Whether the model names each image rightly: bool [n], on the CPU."""
        return self.predictions == self.labels

    def batches(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        """Images (or rows of these) by so many as may go through the model at once, in order."""
        for first in range(0, len(items), self.batch_size):
            yield items[first : first + self.batch_size]

    def load(self, positions: Sequence[int]) -> Tensor:
        """The images at `positions`, float32 [N, channels, S, T] in [0, 1], on the device."""
        pixels = torch.stack([self.images.image(position) for position in positions])
        return pixels.to(self.device).to(torch.float32).div_(255)


@dataclass(frozen=True, kw_only=True)
class Number:
    """One result of an audit.

    Attributes:
        key: Its name among the audit's numbers.
        label: In words.
        value: None where there was nothing to measure.
        unit: `%` (0 ... 100), `points` (differences of these), or empty.
        better: Whether a trustworthy model has it `lower` or `higher`; None if neither.
        n: What it was measured on, mostly images.
        low: Lower end of its interval; None where there is none.
        high: Upper end.
    """

    key: str
    label: str
    value: float | None
    unit: Literal["%", "points", ""] = ""
    better: Literal["lower", "higher"] | None = None
    n: int = 0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of one result, or several of the same size to switch between.

    Attributes:
        files: File name in the folder of pictures by what it shows ("clean", "attacked").
        caption: A sentence that says what is to be seen, with its numbers.
        image: Name of the image; empty for a picture of many.
    """

    files: Mapping[str, str]
    caption: str
    image: str = ""


class Audit(ABC, Generic[SettingsT]):
    """An audit under one protocol.

    A subclass sets the class variables and implements `units`, `measure`, `summarise` and
    `pictures`; all four depend on the settings and their arguments alone.

    Class variables:
        name: As in file names and on the command line.
        title: In words.
        protocols: The settings of every protocol it knows, by name; `paper` comes first.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    protocols: ClassVar[Mapping[str, AuditSettings]]

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    @property
    def effort(self) -> int:
        """What an image costs, roughly in forward passes, to tell the time left."""
        return 1 + 3 * int(getattr(self.settings, "steps", 0))

    @abstractmethod
    def units(self, subject: Subject) -> list[list[int]]:
        """The work in fixed units: positions of the images of each, in order, each of them once.

        They depend on the subject's data and seed, not on its batch size or device.
        """

    @abstractmethod
    def measure(self, subject: Subject, positions: Sequence[int]) -> list[Row]:
        """The rows of one unit, or of several at once: an image's own, whatever is beside it."""

    def settings_of(self, subject: Subject) -> SettingsT:
        """The settings as they are reported: with what was left open to the subject filled in."""
        return self.settings

    def counted(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows of all units, with what only shows in all of them; applied twice, as once."""
        return rows

    @abstractmethod
    def summarise(self, subject: Subject, rows: Sequence[Row]) -> list[Number]:
        """The numbers of all units' rows."""

    def values(self, rows: Sequence[Row]) -> Mapping[str, Mapping[int, float]]:
        """What its numbers are means of: one value per image, by the number's key and the image.

        Shares of images are means of 0 and 100. Two models are compared in them, image by image, so
        a number that is of other images for each model (those on which an attack succeeded, say)
        has none; nor have the numbers of an audit that does not say.
        """
        return {}

    @abstractmethod
    def pictures(self, subject: Subject, rows: Sequence[Row], folder: Path) -> list[Picture]:
        """Draw the most telling rows into `folder`, worst first; what they show."""


def skipped(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows gave no result, by reason, the most frequent first."""
    counts: dict[str, int] = {}
    for row in rows:
        if row.get("skipped"):
            counts[row["skipped"]] = counts.get(row["skipped"], 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def in_units(positions: Sequence[int]) -> list[list[int]]:
    """The images at `positions` in units of work."""
    return [list(positions[first : first + UNIT]) for first in range(0, len(positions), UNIT)]


def units_in_order(count: int, wanted: int | None, *keys: int) -> list[list[int]]:
    """Positions of `wanted` of `count` images (None: all) in units, in the set's order.

    A subset is drawn by the keys.
    """
    positions = list(range(count))
    if wanted is not None and wanted < count:
        positions = sorted(permutation(count, *keys)[:wanted].tolist())
    return in_units(positions)
