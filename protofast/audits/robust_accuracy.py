"""Accuracy on the images as they are, and under an attack on the class (Hoffmann et al., Table 3).

The attack is PGD-10: ten steps of 2/255 along the sign of the cross entropy's gradient, from a
random start, within 8/255 of the image. An image leaves at the first iterate that is given another
class, so what counts as right has been right at every iterate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from protofast.attacks import misclassified, pgd
from protofast.audits.audit import (
    SUBSET,
    Audit,
    AuditSettings,
    Number,
    Picture,
    Row,
    Subject,
    units_in_order,
)
from protofast.audits.statistics import share_number
from protofast.explain.pictures import marked_png
from protofast.files import write_atomically
from protofast.training.setting_types import Change

_PICTURES = 6


class RobustAccuracySettings(AuditSettings):
    """Settings of the attack, and of what counts.

    Attributes:
        images: How many images, a seeded subset of all; None for all.
        epsilon: Radius of the L-infinity ball, of images in [0, 1].
        step_size: Change of a step.
        steps: How many.
        restarts: Random starts of each image that is still right.
        clean_counts: Whether an image that is wrong as it is counts as wrong under attack too, for
            the image itself is in the ball. The released code looks at the random start and what
            follows alone, so noise may set such an image right.
    """

    images: Annotated[int, Field(ge=1)] | None = None
    epsilon: Change = 8 / 255
    step_size: Change = 2 / 255
    steps: Annotated[int, Field(ge=0)] = 10
    restarts: Annotated[int, Field(ge=1)] = 1
    clean_counts: bool = True


class RobustAccuracy(Audit[RobustAccuracySettings]):
    """Clean accuracy and PGD-10 adversarial accuracy; see the module's docstring.

    A row has `right`, `right_under_attack` and `class_under_attack`, and `steps`, after which the
    image was given another class (or all of them).
    """

    name: ClassVar[str] = "robust_accuracy"
    title: ClassVar[str] = "Accuracy under attack"
    protocols: ClassVar[Mapping[str, AuditSettings]] = {
        "paper": RobustAccuracySettings(),
        "released": RobustAccuracySettings(protocol="released", clean_counts=False),
    }

    def units(self, subject: Subject) -> list[list[int]]:
        """See `Audit.units`."""
        keys = SUBSET, subject.seed
        return units_in_order(len(subject.images), self.settings.images, *keys)

    def measure(self, subject: Subject, positions: Sequence[int]) -> list[Row]:
        """See `Audit.measure`."""
        judged: dict[int, list[int]] = {}
        attackable = [
            position
            for position in positions
            if bool(subject.correct[position]) or not self.settings.clean_counts
        ]
        for some in subject.batches(attackable):
            judged |= dict(zip(some, self._attack(subject, some)[1], strict=True))
        return [self._row(subject, position, judged.get(position)) for position in positions]

    @staticmethod
    def _row(subject: Subject, position: int, judged: list[int] | None) -> Row:
        """Of one image, from its class under attack (-1: none) and steps; None if not attacked."""
        guessed, steps = judged or [int(subject.predictions[position]), 0]
        return {
            "image": position,
            "name": subject.images.names[position],
            "right": bool(subject.correct[position]),
            "right_under_attack": guessed == int(subject.labels[position]),
            "class_under_attack": subject.images.classes[guessed] if guessed >= 0 else "",
            "steps": steps,
        }

    def summarise(self, subject: Subject, rows: Sequence[Row]) -> list[Number]:
        """See `Audit.summarise`: `clean_accuracy` and `adversarial_accuracy`."""
        return [
            share_number(
                "clean_accuracy", "Accuracy", [row["right"] for row in rows], better="higher"
            ),
            share_number(
                "adversarial_accuracy",
                f"Accuracy under PGD-{self.settings.steps}",
                [row["right_under_attack"] for row in rows],
                better="higher",
            ),
        ]

    def values(self, rows: Sequence[Row]) -> Mapping[str, Mapping[int, float]]:
        """See `Audit.values`."""
        return {
            "clean_accuracy": {row["image"]: 100.0 * row["right"] for row in rows},
            "adversarial_accuracy": {
                row["image"]: 100.0 * row["right_under_attack"] for row in rows
            },
        }

    def pictures(self, subject: Subject, rows: Sequence[Row], folder: Path) -> list[Picture]:
        """See `Audit.pictures`: the images that gave way after the fewest steps."""
        fallen = [row for row in rows if row["right"] and not row["right_under_attack"]]
        chosen = sorted(fallen, key=lambda row: (row["steps"], row["image"]))[:_PICTURES]
        folder.mkdir(parents=True, exist_ok=True)
        pictures: list[Picture] = []
        for some in subject.batches([row["image"] for row in chosen]):
            pictures += self._pairs(subject, some, folder)
        return pictures

    def _pairs(self, subject: Subject, positions: Sequence[int], folder: Path) -> Iterator[Picture]:
        """Draws images before and after the attack; those that hold this time are left out.

        In another batch than before the attack may go another way: what is told is what is shown.
        """
        adversarial, judged = self._attack(subject, positions)
        for position, attacked, found in zip(positions, adversarial, judged, strict=True):
            row = self._row(subject, position, found)
            if row["right_under_attack"]:
                continue
            versions = {"clean": subject.images.image(position), "attacked": attacked}
            files = {version: f"{position}-{version}.png" for version in versions}
            for version, image in versions.items():
                write_atomically(folder / files[version], marked_png(image))
            yield Picture(files=files, caption=self._caption(subject, row), image=row["name"])

    def _attack(self, subject: Subject, positions: Sequence[int]) -> tuple[Tensor, list[list[int]]]:
        """The attacked images [n, channels, S, T]; of each its class (-1: none) and the steps."""
        index = torch.tensor(positions, dtype=torch.int64)
        settings = self.settings
        attacked = pgd(
            misclassified(subject.model, subject.labels[index].to(subject.device)),
            subject.load(positions),
            epsilon=settings.epsilon,
            step_size=settings.step_size,
            steps=settings.steps,
            restarts=settings.restarts,
            seed=subject.seed,
            image_ids=index,
        )
        with torch.no_grad():
            logits = subject.model(attacked.images).logits
        guessed = torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), -1)
        return attacked.images, torch.stack([guessed, attacked.steps], dim=1).tolist()

    def _caption(self, subject: Subject, row: Row) -> str:
        label = subject.images.classes[int(subject.labels[row["image"]])]
        other = row["class_under_attack"] or "nothing, for its logits are not finite"
        return (
            f"{label}, told rightly as it is; with noise of at most "
            f"{self.settings.epsilon * 255:.3g}/255 a pixel, found in {row['steps']} steps, it is "
            f"told to be {other}"
        )
