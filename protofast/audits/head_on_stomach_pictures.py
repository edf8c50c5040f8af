"""Pictures of Head on Stomach: the same image before and after, with the prototype's place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from protofast.attacks.objectives import frozen
from protofast.audits.audit import Picture, Row, Subject
from protofast.explain.pictures import marked_png
from protofast.files import write_atomically
from protofast.heatmaps import high_activation_boxes, upsample

if TYPE_CHECKING:
    from protofast.audits.head_on_stomach import HeadOnStomach

_MOST = 6
_SIDE = 320  # pixels


def draw(
    audit: HeadOnStomach, subject: Subject, rows: Sequence[Row], folder: Path
) -> list[Picture]:
    """Attack the most telling images again and draw them before and after.

    First the successes, the farthest move by the least noise in front; then, where there are few,
    the attacks that came nearest to one.

    Args:
        audit: Whose attack.
        subject: The model and the images.
        rows: Of all units.
        folder: Where the files go; it is made.
    """
    chosen = _most_telling(rows, audit.settings.success)
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Picture] = []
    for some in subject.batches(chosen):
        found += _draw(audit, subject, some, folder, len(found))
    return found


def _most_telling(rows: Sequence[Row], success: Literal["left_source", "in_target"]) -> list[Row]:
    decided = [row for row in rows if not row.get("skipped")]
    decided.sort(
        key=lambda row: (
            not row["success"],
            -_way(row) if row["success"] else _missed(row, success),
            row["change"],
            row["image"],
        )
    )
    return decided[:_MOST]


def _way(row: Row) -> float:
    """How far the prototype went, in cells."""
    rows, columns = (row[f"{axis}_after"] - row[f"{axis}_before"] for axis in ("row", "column"))
    return float((rows**2 + columns**2) ** 0.5)


def _missed(row: Row, success: Literal["left_source", "in_target"]) -> float:
    """By how much an attack has failed."""
    source, elsewhere, target = (
        row[f"{where}_after"] for where in ("source", "elsewhere", "target")
    )
    there, wanted = (
        (source, elsewhere) if success == "left_source" else (max(source, elsewhere), target)
    )
    return float(there - wanted)


def _draw(
    audit: HeadOnStomach, subject: Subject, rows: Sequence[Row], folder: Path, first: int
) -> list[Picture]:
    prototypes = torch.tensor([row["prototype"] for row in rows], device=subject.device)
    with frozen(subject.model), torch.no_grad():
        clean = audit.look(subject, [row["image"] for row in rows])
        aim = audit.aim(subject, clean, prototypes)
        moved = audit.attack(subject, clean, aim)
    size = (clean.images.shape[2], clean.images.shape[3])
    pairs = {"clean": (clean.images, aim.maps), "attacked": (moved.images, moved.maps)}
    heatmaps = {name: upsample(maps, size) for name, (_, maps) in pairs.items()}
    boxes = {name: high_activation_boxes(heat).tolist() for name, heat in heatmaps.items()}
    found = []
    for place, row in enumerate(rows):
        files = {}
        for name, (images, _) in pairs.items():
            x0, y0, x1, y1 = boxes[name][place]
            png = marked_png(
                images[place], heatmap=heatmaps[name][place], box=(x0, y0, x1, y1), longest=_SIDE
            )
            files[name] = f"{first + place + 1}-{name}.png"
            write_atomically(folder / files[name], png)
        caption = _caption(audit, subject, row, aim.maps[place], moved.maps[place])
        caption += f"; classified {_class(subject, row, int(moved.output.logits[place].argmax()))}."

        found.append(Picture(files=files, caption=caption, image=row["name"]))
    return found


def _caption(
    audit: HeadOnStomach, subject: Subject, row: Row, before: Tensor, after: Tensor
) -> str:
    """What is to be seen, of the attack that is drawn."""
    classes = subject.images.classes
    owner = subject.model.prototype_class
    of = "" if owner is None else f" of {classes[int(owner[row['prototype']])]}"
    (old_row, old_column), (new_row, new_column) = (
        divmod(int(one.flatten().argmax()), one.shape[1]) for one in (before, after)
    )
    text = f"Prototype {row['prototype']}{of}: most similar at row {old_row}, column {old_column} "
    text += f"({float(before.max()):.2f}); "
    if (new_row, new_column) == (old_row, old_column):
        text += f"still there after the attack ({float(after.max()):.2f})"
    else:
        text += f"after the attack at row {new_row}, column {new_column} "
        text += f"({float(after.max()):.2f}; {float(after[old_row, old_column]):.2f} where it was)"
    return text + f". No value changes by more than {audit.settings.epsilon * 255:.3g}/255"


def _class(subject: Subject, row: Row, found: int) -> str:
    verb = "still as" if found == row["label"] else "no longer right, but as"
    return f"{verb} {subject.images.classes[found]}"
