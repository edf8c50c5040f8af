"""Spatial misalignment: does a prototype's similarity come from where its map says?

Sacha et al. 2024 (2308.08162). What an explanation marks of an image is protected; all else is
changed, within a small radius. In a network that looks where it says, the prototype keeps its
place, its similarity and its rank; `location_change`, `activation_change` and `rank_change` say how
far these move, and the accuracies before and after what that means for the decision.

The paper speaks of an attack that lowers the prototype's largest similarity; that is the protocol
`paper`. The released code never takes a step (its loss is the cross entropy of a single logit: 0,
and so is its gradient), so that what it measures, and what was published, is the effect of uniform
noise outside the region; that is `released`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

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
from protofast.audits.misalignment_attack import (
    PAPER,
    RELEASED,
    Examined,
    MisalignmentSettings,
    examine,
)
from protofast.audits.misalignment_metrics import activation_change, location_change, rank_change
from protofast.audits.statistics import column_mean, mean_number, remark_shares, share_number
from protofast.explain.pictures import marked_png
from protofast.files import write_atomically
from protofast.heatmaps import upsample

_PICTURES = 8

NOT_FINITE = "similarities that are not finite"
NOT_FINITE_AFTER = "similarities that are not finite after the attack"
NO_PROTOTYPES = "a class without prototypes"

REMARKS = {
    "flat_map": "Prototype equally similar everywhere",
    "nothing_to_attack": "Protected as a whole, nothing changed",
    "tied_prototypes": "Several strongest prototypes (the first was taken)",
    "undefined_activation_change": "No activation change: similarity not above 0",
}
"""What a row's `remarks` may hold, and what its share among the images is called."""


class SpatialMisalignment(Audit[MisalignmentSettings]):
    """The spatial-misalignment benchmark as an audit; see the module's docstring.

    Every image counts, whether it was classified rightly or not. A row has `image`, `name`,
    `label`, `skipped` (why there is nothing more; else empty), and:

    - `predicted`, `predicted_after`: the class before and after the attack; also where the row is
      `skipped`, as long as the network's numbers are finite. The accuracies are of all rows that
      have `predicted`: a network that breaks under attack is wrong then.
    - `prototype`, `prototype_class`: the prototype that is measured (the class is None where
      prototypes have none).
    - `x0`, `y0`, `x1`, `y1`: its protected rectangle in pixels, the last two one past the end.
    - `protected`: share of the image's pixels that were protected, in per cent.
    - `activation_before`, `activation_after`: its largest similarity.
    - `location_change` (PLC, %), `activation_change` (PAC, %; None where the similarity was not
      above 0), `rank_change` (PRC, prototypes).
    - `remarks`: keys of `REMARKS` that hold, between spaces.
    """

    name: ClassVar[str] = "spatial_misalignment"
    title: ClassVar[str] = "Spatial misalignment"
    protocols: ClassVar[Mapping[str, AuditSettings]] = {"paper": PAPER, "released": RELEASED}

    def units(self, subject: Subject) -> list[list[int]]:
        """Some images each, in the order of the data set."""
        keys = SUBSET, subject.seed
        return units_in_order(len(subject.images), self.settings.images, *keys)

    @property
    def effort(self) -> int:
        """See `Audit.effort`: noise takes no steps."""
        return super().effort if self.settings.attack == "pgd" else 2

    def measure(self, subject: Subject, positions: Sequence[int]) -> list[Row]:
        """One row for each image."""
        rows: list[Row] = []
        for some in subject.batches(positions):
            examined, among = self._examine(subject, some)
            rows += self._rows(subject, some, examined, among)
        return rows

    def summarise(self, subject: Subject, rows: Sequence[Row]) -> list[Number]:
        """The three metrics, the accuracies, and how often there was something to remark."""
        named = [row for row in rows if row["predicted"] is not None]
        rows = [row for row in rows if not row["skipped"]]
        right = [row["predicted"] == row["label"] for row in named]
        still = [row["predicted_after"] == row["label"] for row in named]
        lost = [100.0 * (was - now) for was, now in zip(right, still, strict=True)]
        numbers = [
            column_mean("location_change", "Location change (PLC)", rows, unit="%", better="lower"),
            column_mean(
                "activation_change", "Activation change (PAC)", rows, unit="%", better="lower"
            ),
            column_mean("rank_change", "Rank change (PRC), prototypes", rows, better="lower"),
            share_number("accuracy_before", "Accuracy before", right, better="higher"),
            share_number("accuracy_after", "Accuracy after", still, better="higher"),
            mean_number(
                "accuracy_change", "Accuracy lost (AC)", lost, unit="points", better="lower"
            ),
        ]
        return [*numbers, *remark_shares(rows, REMARKS)]

    def values(self, rows: Sequence[Row]) -> Mapping[str, Mapping[int, float]]:
        """See `Audit.values`."""
        named = [row for row in rows if row["predicted"] is not None]
        right = {row["image"]: 100.0 * (row["predicted"] == row["label"]) for row in named}
        still = {row["image"]: 100.0 * (row["predicted_after"] == row["label"]) for row in named}
        return {
            **{
                key: {row["image"]: float(row[key]) for row in rows if row[key] is not None}
                for key in ("location_change", "activation_change", "rank_change")
            },
            "accuracy_before": right,
            "accuracy_after": still,
            "accuracy_change": {image: was - still[image] for image, was in right.items()},
        }

    def pictures(self, subject: Subject, rows: Sequence[Row], folder: Path) -> list[Picture]:
        """The images on which a prototype's place moved most, clean and attacked."""
        moved = [row for row in rows if not row["skipped"] and row["location_change"] > 0]
        moved.sort(key=lambda row: (-row["location_change"], -row["activation_before"]))
        found: list[Picture] = []
        folder.mkdir(parents=True, exist_ok=True)
        for some in subject.batches([row["image"] for row in moved[:_PICTURES]]):
            found += self._pairs(subject, some, folder, len(found))
        return found

    def _pairs(
        self, subject: Subject, positions: Sequence[int], folder: Path, drawn: int
    ) -> Iterator[Picture]:
        """Draws images before and after the attack; `drawn` are there already.

        In another batch than before the attack may go another way: what is told is what is shown.
        """
        examined, own = self._examine(subject, positions)
        versions = {
            "clean": (subject.load(positions), examined.before.maps),
            "attacked": (examined.changed, examined.after.maps),
        }
        for n, row in enumerate(self._rows(subject, positions, examined, own)):
            if row["skipped"]:
                continue
            files = {}
            for version, (images, maps) in versions.items():
                size = (images.shape[2], images.shape[3])
                files[version] = f"{drawn + n + 1:02d}-image-{row['image']}-{version}.png"
                shown = marked_png(
                    images[n].clamp(0, 1),
                    heatmap=upsample(maps[n], size),
                    box=(row["x0"], row["y0"], row["x1"], row["y1"]),
                )
                write_atomically(folder / files[version], shown)
            caption = _caption(row, subject.images.classes, self.settings)
            yield Picture(files=files, caption=caption, image=row["name"])

    def _examine(self, subject: Subject, positions: Sequence[int]) -> tuple[Examined, Tensor]:
        """Before and after, and which prototypes belong to each image's class: bool [N, P]."""
        model = subject.model
        dtype = torch.promote_types(model.mean.dtype, torch.float32)
        images = subject.load(positions).to(dtype)
        own = torch.zeros(
            (len(positions), model.num_prototypes), dtype=torch.bool, device=images.device
        )
        if model.prototype_class is not None:
            labels = subject.labels[list(positions)].to(images.device)
            own = labels.unsqueeze(1) == model.prototype_class
        among = own if self.settings.prototypes == "gt_protos" else torch.ones_like(own)
        examined = examine(
            model,
            images,
            among,
            self.settings,
            image_ids=torch.tensor(list(positions), dtype=torch.int64),
            seed=subject.seed,
        )
        return examined, own

    def _rows(
        self, subject: Subject, positions: Sequence[int], seen: Examined, own: Tensor
    ) -> list[Row]:
        """The rows of one batch; its tensors come to the CPU column by column."""
        before, after, strongest = seen.before, seen.after, seen.chosen.strongest
        of = strongest.unsqueeze(1)
        first, second = (part.activations.gather(1, of)[:, 0] for part in (before, after))
        classes = subject.model.prototype_class
        place = (seen.chosen.prototypes == of).to(torch.uint8).argmax(dim=1)  # [N], among the K
        box = seen.boxes[torch.arange(len(place), device=place.device), place]  # [N, 4]
        change = activation_change(first, second)
        size = (seen.free.shape[2], seen.free.shape[3])
        quantile = self.settings.quantile
        columns = {
            "predicted": before.predicted,
            "predicted_after": after.predicted,
            "prototype": strongest,
            "prototype_class": None if classes is None else classes[strongest],
            **dict(zip(("x0", "y0", "x1", "y1"), box.unbind(1), strict=True)),
            "protected": 100 * (~seen.free).flatten(1).double().mean(dim=1),
            "activation_before": first.double(),
            "activation_after": second.double(),
            "location_change": location_change(before.maps, after.maps, size, quantile=quantile),
            "activation_change": change,
            "rank_change": rank_change(before.activations, after.activations, strongest, own),
        }
        values = {
            key: [None] * len(positions) if column is None else column.tolist()
            for key, column in columns.items()
        }
        reasons = self._reasons(seen)
        finite = before.finite.tolist()
        finite_after = (before.finite & after.finite).tolist()
        remarks = {
            "flat_map": before.maps.flatten(1).amax(dim=1) == before.maps.flatten(1).amin(dim=1),
            "nothing_to_attack": ~seen.free.flatten(1).any(dim=1),
            "tied_prototypes": seen.chosen.tied,
            "undefined_activation_change": change.isnan(),
        }
        holds = {key: column.tolist() for key, column in remarks.items()}
        rows: list[Row] = []
        for n, position in enumerate(positions):
            row: Row = {
                "image": position,
                "name": subject.images.names[position],
                "label": int(subject.labels[position]),
                "skipped": reasons[n],
            }
            row |= {key: None if reasons[n] else column[n] for key, column in values.items()}
            row["predicted"] = values["predicted"][n] if finite[n] else None
            row["predicted_after"] = values["predicted_after"][n] if finite_after[n] else None
            said = [key for key, column in holds.items() if column[n] and not reasons[n]]
            row["remarks"] = " ".join(said)
            if holds["undefined_activation_change"][n]:
                row["activation_change"] = None
            rows.append(row)
        return rows

    def _reasons(self, seen: Examined) -> list[str]:
        """Why there is no result for an image; empty where there is one."""
        some = seen.chosen.counts.any(dim=1).tolist()
        states = zip(some, seen.before.finite.tolist(), seen.after.finite.tolist(), strict=True)
        return [
            NO_PROTOTYPES
            if not has
            else NOT_FINITE
            if not before
            else NOT_FINITE_AFTER
            if not after
            else ""
            for has, before, after in states
        ]


def _caption(row: Row, classes: Sequence[str], settings: MisalignmentSettings) -> str:
    """What happened to one image, in words and numbers."""
    changed = "all but the frame changed"
    if settings.prototypes == "gt_protos":  # of several, and the frame is one's alone
        changed = "pixels outside the protected regions changed"
    whose = "" if row["prototype_class"] is None else f" of {classes[row['prototype_class']]}"
    share = "" if row["activation_change"] is None else f" (PAC {row['activation_change']:.0f} %)"
    rank = row["rank_change"]
    passes = f"overtakes {-rank}" if rank < 0 else f"is overtaken by {rank or 'none'}"
    was, now = classes[row["predicted"]], classes[row["predicted_after"]]
    decision = f"as {was}, before and after" if was == now else f"as {was} before, as {now} after"
    return (
        f"Prototype {row['prototype']}{whose}, {changed}: its similarity goes from "
        f"{row['activation_before']:.2f} to {row['activation_after']:.2f}{share}, its place moves "
        f"(PLC {row['location_change']:.0f} %), and it {passes} of other classes (PRC {rank}). "
        f"Classified {decision}."
    )
