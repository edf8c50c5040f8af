"""The confusion matrix, ready to be shown: a table for few classes, a field of dots for many."""

from __future__ import annotations

from dataclasses import dataclass

from protofast.report.files import Confusion

TABLE_UP_TO = 24  # classes; more numbers than these cannot be read in a table
_PAIRS = 12


@dataclass(frozen=True)
class Row:
    """One true class."""

    number: int
    name: str
    images: int
    right: int
    accuracy: float | None
    cells: list[Cell]
    worst: str | None  # the class it is taken for most often
    worst_images: int


@dataclass(frozen=True)
class Cell:
    """One entry of the matrix that is not 0, or any in a table."""

    column: int
    images: int
    share: float  # of the true class's images
    right: bool


@dataclass(frozen=True)
class Pair:
    """A confusion."""

    true: str
    predicted: str
    images: int
    of: int


@dataclass(frozen=True)
class ConfusionView:
    """The matrix by rows (true classes), and the most frequent confusions."""

    classes: list[str]
    rows: list[Row]
    pairs: list[Pair]
    images: int
    right: int

    @property
    def as_table(self) -> bool:
        """Whether there are few enough classes for numbers."""
        return len(self.classes) <= TABLE_UP_TO


def confusion_view(confusion: Confusion, classes: list[str]) -> ConfusionView:
    """Reads the matrix; ``classes`` are the names to show."""
    rows, pairs = [], []
    for number, counts in enumerate(confusion.counts):
        total = sum(counts)
        cells = [
            Cell(column, images, images / total if total else 0.0, column == number)
            for column, images in enumerate(counts)
        ]
        wrong = [(images, column) for column, images in enumerate(counts) if column != number]
        most, column = max(wrong, key=lambda pair: (pair[0], -pair[1]), default=(0, 0))
        rows.append(
            Row(
                number=number,
                name=classes[number],
                images=total,
                right=counts[number],
                accuracy=counts[number] / total if total else None,
                cells=cells,
                worst=classes[column] if most else None,
                worst_images=most,
            )
        )
        pairs += [
            Pair(classes[number], classes[column], images, total)
            for images, column in wrong
            if images
        ]
    pairs.sort(key=lambda pair: (-pair.images, -pair.images / pair.of))
    return ConfusionView(
        classes=classes,
        rows=rows,
        pairs=pairs[:_PAIRS],
        images=sum(row.images for row in rows),
        right=sum(row.right for row in rows),
    )
