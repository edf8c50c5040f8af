"""Head on Stomach as an audit: on how many images can a prototype be moved away from its place?

Hoffmann et al. 2021, section 3, Table 3 and appendix F.1. Of a random subset of the correctly
classified images, the prototypes that each activates most are attacked in turn, until one of them
has left its place; then the image is decided. All images of a unit that are undecided are attacked
at once, each with its own prototype, source cells, target cells and pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from protofast.attacks.objectives import frozen
from protofast.audits.audit import (
    SUBSET,
    Audit,
    AuditSettings,
    Number,
    Picture,
    Row,
    Subject,
    in_units,
)
from protofast.audits.cells import bounding_rectangle, pixels_of_cells
from protofast.audits.head_on_stomach_aims import (
    OUTSIDE,
    Aim,
    Clean,
    describe,
    largest,
    one_cell,
    reasons_against,
)
from protofast.audits.head_on_stomach_attack import (
    EPSILON,
    STEP_SIZE,
    STEPS,
    Moved,
    RandomStart,
    head_on_stomach,
    source_cells,
)
from protofast.audits.statistics import mean_number, share_number
from protofast.data.randomness import permutation
from protofast.training.setting_types import Change

WRONG = "already wrong"
NOT_NEEDED = "not needed: enough decided"


class HeadOnStomachSettings(AuditSettings):
    """What is attacked, with what, and when it has succeeded.

    Attributes:
        images: How many images, drawn at random; all where there are fewer.
        spare: How many more are drawn and attacked, to take the place of those that turn out to be
            undecidable. The first `images` that are decided count.
        prototypes: How many of the most activated prototypes are attacked at most, of all classes.
        selection: Images that this model classifies correctly, or that all models of the audit do.
        source_border: Whether a box that ends between two cells reaches into the next one too; see
            `cells.cells_of_boxes`.
        target: `complement`: all cells outside the source, as a set. `rectangle`: the smallest
            rectangle around these, in most cases the whole grid. `cell`: one of them at random.
        noise: Pixels that may change: those of the target cells, or of target and source.
        success: `left_source`: the largest similarity outside the source exceeds that inside.
            `in_target`: that in the target exceeds that of every other cell.
        no_target: Where a prototype's source covers every cell, go on with the `next_prototype`, or
            `skip_image`. The latter, as the released code, also attacks prototypes that are most
            similar outside their source already.
        epsilon: Largest change of a pixel in [0, 1].
        step_size: Change per step.
        steps: How many.
        random_start: See `pgd`.
        restarts: See `head_on_stomach`.
    """

    images: Annotated[int, Field(ge=1)] = 200
    spare: Annotated[int, Field(ge=0)] = 0
    prototypes: Annotated[int, Field(ge=1)] = 5
    selection: Literal["correct", "correct_in_all"] = "correct"
    source_border: bool = False
    target: Literal["complement", "rectangle", "cell"] = "complement"
    noise: Literal["target", "target_and_source"] = "target_and_source"
    success: Literal["left_source", "in_target"] = "left_source"
    no_target: Literal["next_prototype", "skip_image"] = "next_prototype"
    epsilon: Change = EPSILON
    step_size: Change = STEP_SIZE
    steps: Annotated[int, Field(ge=0)] = STEPS
    random_start: RandomStart = True
    restarts: Annotated[int, Field(ge=1)] = 1


PAPER = HeadOnStomachSettings(protocol="paper")
RELEASED = HeadOnStomachSettings(
    protocol="released",
    spare=50,
    selection="correct_in_all",
    source_border=True,
    target="rectangle",
    noise="target",
    no_target="skip_image",
    random_start="unmasked",
)
TARGETED = HeadOnStomachSettings(
    protocol="targeted", target="cell", noise="target", success="in_target"
)


class HeadOnStomach(Audit[HeadOnStomachSettings]):
    """The success rate of Head on Stomach; see the module's docstring.

    One row for each image that was drawn. `skipped` says why an image is not decided; images that
    were wrong before are drawn too, and counted so. Columns of others: `ranks_tried`, prototypes
    attacked; `passed_over`, prototypes that could not be, and the `reason` of the last of them; and
    of the last one attacked: `success`, `tied` (as similar there as elsewhere, which is none),
    `rank` (from 1), `prototype`, where it is most similar before and after (`row_before`, ...), the
    largest similarity in the source, outside it and in the target before and after
    (`source_before`, `elsewhere_before`, `target_before`, ...), `class_after`, and `change`, the
    root mean square of the noise (of 255).
    """

    name: ClassVar[str] = "head_on_stomach"
    title: ClassVar[str] = "Head on Stomach"
    protocols: ClassVar[Mapping[str, AuditSettings]] = {
        "paper": PAPER,
        "released": RELEASED,
        "targeted": TARGETED,
    }

    def units(self, subject: Subject) -> list[list[int]]:
        """A random order of the images, until there are enough right ones."""
        right, wanted = self._right(subject), self.settings.images + self.settings.spare
        order = permutation(len(subject.images), SUBSET, subject.seed)
        found = right[torch.from_numpy(order)].cumsum(dim=0)
        return in_units(order[: int((found < wanted).sum()) + 1].tolist())

    def measure(self, subject: Subject, positions: Sequence[int]) -> list[Row]:
        """One row per image; each rank of prototypes is one attack on all that are undecided."""
        right = self._right(subject)
        rows = {position: _row(subject, position) for position in positions}
        for position in positions:
            if not right[position]:
                rows[position]["skipped"] = WRONG
        with frozen(subject.model), torch.no_grad():
            for some in subject.batches([position for position in positions if right[position]]):
                clean = self.look(subject, some)
                for rank in range(clean.ranked.shape[1]):
                    clean = self._one_rank(subject, clean, rank, rows)
                    if len(clean.positions) == 0:
                        break
                for position in clean.positions.tolist():
                    if rows[position]["ranks_tried"] == 0:
                        _skip(rows[position])
        return [rows[position] for position in positions]

    def counted(self, rows: Sequence[Row]) -> list[Row]:
        """The rows, those that are decided beyond the first `images` of them marked as unneeded."""
        left, found = self.settings.images, list[Row]()
        for row in rows:
            decided = not row.get("skipped")
            found.append(row | {"skipped": NOT_NEEDED} if decided and left == 0 else row)
            left -= decided and left > 0
        return found

    def summarise(self, subject: Subject, rows: Sequence[Row]) -> list[Number]:
        """Success rate, prototypes tried, and how many successes leave the class as it is."""
        decided = [row for row in self.counted(rows) if not row.get("skipped")]
        successes = [row for row in decided if row["success"]]
        return [
            share_number(
                "success_rate",
                "attack success rate",
                [row["success"] for row in decided],
                better="lower",
            ),
            mean_number(
                "mean_prototypes_tried",
                "prototypes attacked per image",
                [row["ranks_tried"] for row in decided],
                better="higher",
            ),
            share_number(
                "still_right",
                "successes that keep the class",
                [row["class_after"] == row["label"] for row in successes],
            ),
        ]

    def values(self, rows: Sequence[Row]) -> Mapping[str, Mapping[int, float]]:
        """See `Audit.values`."""
        decided = [row for row in self.counted(rows) if not row.get("skipped")]
        return {
            "success_rate": {row["image"]: 100.0 * row["success"] for row in decided},
            "mean_prototypes_tried": {row["image"]: float(row["ranks_tried"]) for row in decided},
        }

    def pictures(self, subject: Subject, rows: Sequence[Row], folder: Path) -> list[Picture]:
        """Clean and attacked images, the farthest move by the least noise first."""
        from protofast.audits.head_on_stomach_pictures import draw

        return draw(self, subject, self.counted(rows), folder)

    def look(self, subject: Subject, positions: Sequence[int]) -> Clean:
        """The images at `positions` as they are, and their most activated prototypes."""
        images = subject.load(positions)
        if images.device.type == "cpu":  # on which convolutions are a tenth faster so
            images = images.contiguous(memory_format=torch.channels_last)
        features = subject.model.features(images)
        output = subject.model.classify(features)
        order = output.activations.argsort(dim=1, descending=True, stable=True)
        return Clean(
            torch.tensor(positions), images, features, output, order[:, : self.settings.prototypes]
        )

    def aim(self, subject: Subject, clean: Clean, prototypes: Tensor) -> Aim:
        """Source, target and pixels for one prototype (int64 [N]) of each image."""
        settings, size = self.settings, (clean.images.shape[2], clean.images.shape[3])
        maps = subject.model.similarity_map(clean.features, prototypes[:, None])[:, 0]
        sources = source_cells(maps, size, border=settings.source_border)
        targets = ~sources
        if settings.target == "rectangle":
            targets = bounding_rectangle(targets)
        elif settings.target == "cell":
            targets = one_cell(targets, subject.seed, clean.positions, prototypes)
        noisy = targets | sources if settings.noise == "target_and_source" else targets
        pixels = pixels_of_cells(noisy, size)
        reasons = reasons_against(maps, sources, targets, pixels)
        if settings.no_target == "skip_image":  # the released code attacks these, and counts them
            reasons = ["" if reason == OUTSIDE else reason for reason in reasons]
        return Aim(prototypes, maps, sources, targets, pixels, reasons)

    def attack(self, subject: Subject, clean: Clean, aim: Aim) -> Moved:
        """Attack all images at once."""
        settings = self.settings
        return head_on_stomach(
            subject.model,
            clean.images,
            aim.prototypes,
            aim.targets,
            sources=aim.sources,
            pixels=aim.pixels,
            epsilon=settings.epsilon,
            step_size=settings.step_size,
            steps=settings.steps,
            random_start=settings.random_start,
            restarts=settings.restarts,
            seed=subject.seed,
            image_ids=clean.positions,
        )

    def margin(self, moved: Moved) -> Tensor:
        """By how much each prototype is more similar where it shall go than elsewhere: [N].

        Above 0 is a success; 0 is a tie, and none.
        """
        there = ~moved.sources if self.settings.success == "left_source" else moved.targets
        return largest(moved.maps, there) - largest(moved.maps, ~there)

    def _right(self, subject: Subject) -> Tensor:
        every = self.settings.selection == "correct_in_all"
        return subject.correct & subject.correct_in_all if every else subject.correct

    def _one_rank(
        self, subject: Subject, clean: Clean, rank: int, rows: Mapping[int, Row]
    ) -> Clean:
        """Attack one prototype of each image; the images that are undecided still."""
        aim = self.aim(subject, clean, clean.ranked[:, rank])
        undecided = torch.ones(len(aim.reasons), dtype=torch.bool)
        able = torch.tensor([not reason for reason in aim.reasons]).nonzero()[:, 0]
        results: list[Row] = [{"reason": reason} for reason in aim.reasons]
        if len(able):
            some, aimed = clean.rows(able), aim.rows(able)
            found = describe(some, aimed, moved := self.attack(subject, some, aimed))
            for place, margin, result in zip(
                able.tolist(), self.margin(moved).tolist(), found, strict=True
            ):
                results[place] = result | {"success": margin > 0, "tied": margin == 0}
        for place, result in enumerate(results):
            row = rows[int(clean.positions[place])]
            if result.get("reason"):
                row["passed_over"] += 1
                row["reason"] = result["reason"]
                if self.settings.no_target == "skip_image":
                    _skip(row)
                    undecided[place] = False
            else:
                row["ranks_tried"] += 1
                row.update(result, rank=rank + 1)
                undecided[place] = not result["success"]
        return clean.rows(undecided.nonzero()[:, 0])


def _row(subject: Subject, position: int) -> Row:
    return {
        "image": position,
        "name": subject.images.names[position],
        "label": int(subject.labels[position]),
        "ranks_tried": 0,
        "passed_over": 0,
    }


def _skip(row: Row) -> None:
    """The image counts neither as a success nor as a failure."""
    row["skipped"] = row.pop("reason")
    for column in ("success", "tied"):
        row.pop(column, None)
