"""The figure of one attack: this looks like that, and now that looks like this (Hoffmann, Fig. 1).

Six panels. Left the prototype: the training image it comes from, with its box, and the patch
itself. In the middle and on the right the image before and after the attack, with the place where
the prototype finds itself (yellow) and where it was sent (dashed); below, the noise, amplified, and
the attacked image without any marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from protofast.audits.attacked_image import AttackedImage, State
from protofast.audits.cells import bounding_rectangle, pixels_of_cells
from protofast.explain.canvas import SOFT, Canvas, drawing, figure_path, on_one_line
from protofast.explain.local import Box
from protofast.explain.pictures import coloured
from protofast.explain.prototype_pictures import PrototypePictures
from protofast.heatmaps import high_activation_boxes, upsample

_MARGIN, _SIDE, _GAP = 0.3, 2.55, 0.3  # inches
_ABOVE, _BELOW = 0.26, 0.5  # of a panel, for its title and what is said of it
_LONGEST = 40  # of a class name


def save_attack_figure(
    path: Path | str,
    attacked: AttackedImage,
    classes: Sequence[str],
    *,
    run_folder: Path | str | None = None,
    checkpoint: str | None = None,
    prototypes: int,
) -> Path:
    """Draw the six panels.

    Args:
        path: Where to write; the suffix (.png, .svg or .pdf) says what.
        attacked: From `attack_image`.
        classes: Class names.
        run_folder: The run, whose explained prototypes are pictured; without it, or if it has not
            been explained, the panels of the prototype stay empty.
        checkpoint: Name of the model's checkpoint; prototypes of another one are not pictured.
        prototypes: How many the model has.

    Raises:
        SettingsError: The suffix is another one.
        OSError: The file cannot be written.
    """
    path = figure_path(path)
    pictures = PrototypePictures.of(run_folder, checkpoint, prototypes)
    size = attacked.clean.image.shape[-2:]
    source = pictures.source(attacked.prototype)
    high = max(_high(size), _SIDE if source is None else _high(source.size))
    row = _ABOVE + high + _BELOW
    width = 2 * _MARGIN + 3 * _SIDE + 2 * _GAP
    with drawing(width, 2 * _MARGIN + 2 * row - 0.25) as canvas:
        _draw_prototype(canvas, attacked, classes, pictures, row)
        for column, state in ((1, attacked.clean), (2, attacked.attacked)):
            _draw_state(canvas, column, attacked, state, classes)
        _draw_noise(canvas, attacked, row)
        return canvas.save(path)


def _draw_prototype(
    canvas: Canvas,
    attacked: AttackedImage,
    classes: Sequence[str],
    pictures: PrototypePictures,
    row: float,
) -> None:
    """Its source with its box, and below the patch itself."""
    number, owner = attacked.prototype, attacked.prototype_class
    x, y = _title(canvas, 0, 0.0, f"Source of prototype {number}")
    source, crop = pictures.source(number), pictures.crop(number)
    if source is None:
        _empty(canvas, x, y)
    else:
        canvas.picture(x, y, _SIDE, source.pixels, source.size, box=source.box)
        _say(canvas, 0, y + _high(source.size), _name(classes[source.label]))
    x, y = _title(canvas, 0, row, f"Prototype {number}")
    if crop is None:
        _empty(canvas, x, y)
    else:
        side = min(_SIDE, (row - _ABOVE - _BELOW) * max(crop.shape[:2]) / crop.shape[0])
        canvas.picture(x, y, side, crop, crop.shape[:2])
        of = "" if owner is None else f"of {_name(classes[owner])}"
        _say(canvas, 0, y + side * crop.shape[0] / max(crop.shape[:2]), of)


def _draw_state(
    canvas: Canvas, column: int, attacked: AttackedImage, state: State, classes: Sequence[str]
) -> None:
    """The image with box and heat map, and what the model says of it."""
    before = state is attacked.clean
    x, y = _title(canvas, column, 0.0, "Clean image" if before else "Attacked image")
    size = (state.image.shape[-2], state.image.shape[-1])
    heatmap = upsample(state.map, size)
    x0, y0, x1, y1 = high_activation_boxes(heatmap).tolist()
    canvas.image(
        x,
        y,
        _SIDE,
        state.image,
        overlay=coloured(heatmap),
        box=(x0, y0, x1, y1),
        outlines=_outlines(attacked.targets, size),
    )
    row, place = state.place
    _say(
        canvas,
        column,
        y + _high(size),
        f"similarity {state.similarity:.2f} at row {row}, column {place}; rank {state.rank}",
        f"{_name(classes[state.predicted])}, {state.probability:.0%}",
    )


def _draw_noise(canvas: Canvas, attacked: AttackedImage, row: float) -> None:
    """The noise, amplified, and the attacked image without anything on it."""
    clean, image = attacked.clean.image, attacked.attacked.image
    noise = image.double() - clean.double()
    largest = float(noise.abs().max())
    factor = 0.5 / largest if largest > 0 else 1.0
    size = (clean.shape[-2], clean.shape[-1])
    x, y = _title(canvas, 1, row, f"Noise, {factor:.0f} times as strong")
    targets = _outlines(attacked.targets, size)
    canvas.image(x, y, _SIDE, (0.5 + factor * noise).clamp(0, 1).float(), outlines=targets)
    here = float(attacked.attacked.in_target)
    _say(
        canvas,
        1,
        y + _high(size),
        f"within {largest * 255:.3g}/255",
        f"in the dashed cells {attacked.clean.in_target:.2f} before, {here:.2f} after",
    )
    x, y = _title(canvas, 2, row, "Attacked image alone")
    canvas.image(x, y, _SIDE, image)


def _outlines(cells: Tensor, size: tuple[int, int]) -> list[Box]:
    """Boxes on the image around cells: one if they are a rectangle, else one for each."""
    if torch.equal(cells, bounding_rectangle(cells)):
        return [_box(cells, size)]
    boxes = []
    for row, column in cells.nonzero().tolist():
        one = torch.zeros_like(cells)
        one[row, column] = True
        boxes.append(_box(one, size))
    return boxes


def _box(cells: Tensor, size: tuple[int, int]) -> Box:
    pixels = pixels_of_cells(cells, size)
    rows, columns = pixels.any(dim=1).nonzero()[:, 0], pixels.any(dim=0).nonzero()[:, 0]
    if len(rows) == 0 or len(columns) == 0:  # cells without pixels, of an image smaller than a grid
        return (0, 0, 0, 0)
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _title(canvas: Canvas, column: int, down: float, text: str) -> tuple[float, float]:
    """Writes a panel's title; where its picture goes."""
    x, y = _MARGIN + column * (_SIDE + _GAP), _MARGIN + down
    canvas.text(x, y + 0.08, text, size=9.5, weight="bold")
    return x, y + _ABOVE


def _say(canvas: Canvas, column: int, y: float, *lines: str) -> None:
    for number, line in enumerate(lines):
        x = _MARGIN + column * (_SIDE + _GAP)
        canvas.text(x, y + 0.14 + 0.16 * number, line, size=8, color=SOFT)


def _empty(canvas: Canvas, x: float, y: float) -> None:
    canvas.text(x, y + 0.2, "no picture of it yet:\nprotofast explain RUN", color=SOFT)


def _high(size: Sequence[int]) -> float:
    """Height in inches of a picture of `size` (S, T) fitted into a panel."""
    return _SIDE * size[0] / max(size[0], size[1])


def _name(text: str) -> str:
    return on_one_line(text, _LONGEST)
