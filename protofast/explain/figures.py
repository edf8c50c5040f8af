"""Figures for papers and slides: one explained image, one prototype; PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from protofast.errors import RunFolderError, SettingsError, command_line
from protofast.explain.canvas import SOFT, Canvas, drawing, figure_path, on_one_line
from protofast.explain.files import FOLDER, SUMMARY, Json, read_summary
from protofast.explain.local import ClassExplanation, Explanation, Term
from protofast.explain.pictures import coloured
from protofast.explain.prototype_pictures import PrototypePictures, opened, stored
from protofast.files import standing

_FOR, _AGAINST = "#0b6a62", "#ad4019"
_ROW, _GAP, _MARGIN = 0.78, 0.42, 0.25  # inches
_WIDTH, _LEFT = 8.4, 2.5


def save_explanation_figure(
    path: Path | str,
    explanation: Explanation,
    classes: Sequence[str],
    *,
    run_folder: Path | str | None = None,
    checkpoint: str | None = None,
) -> Path:
    """Draws one explanation: the image, then "this looks like that" with the numbers, per class.

    Args:
        path: Where to write; the suffix (.png, .svg or .pdf) says what.
        explanation: From :func:`protofast.explain.explain_image`.
        classes: Class names.
        run_folder: The run, whose explained prototypes are pictured; without it, or if the run has
            not been explained, they are named only.
        checkpoint: Name of the model's checkpoint; prototypes of another one are not pictured.

    Raises:
        SettingsError: The suffix is another one.
        OSError: The file cannot be written.
    """
    path = figure_path(path)
    crops = PrototypePictures.of(run_folder, checkpoint, len(explanation.classes[0].contributions))
    heights = [_height(part) for part in explanation.classes]
    height = max(sum(heights) + _GAP * (len(heights) - 1) + 2 * _MARGIN, _LEFT + 1.2)
    with drawing(_WIDTH, height) as canvas:
        canvas.image(_MARGIN, _MARGIN, _LEFT, explanation.image)
        y = _MARGIN + canvas.fitted(_LEFT, explanation.image) + 0.22
        canvas.text(
            _MARGIN, y, on_one_line(classes[explanation.predicted], 26), size=11, weight="bold"
        )
        if explanation.label is not None and explanation.label != explanation.predicted:
            truth = f"in truth {on_one_line(classes[explanation.label], 32)}"
            canvas.text(_MARGIN, y + 0.2, truth, color=_AGAINST)
        y = _MARGIN
        for place, part in enumerate(explanation.classes):
            _draw_class(canvas, y, part, place == 0, explanation, classes, crops)
            y += heights[place] + _GAP
        return canvas.save(path)


def save_prototype_figure(
    path: Path | str, run_folder: Path | str, prototype: int, *, nearest: int = 5
) -> Path:
    """Draws one prototype of an explained run: its source, and the images nearest to it.

    Args:
        path: Where to write; the suffix (.png, .svg or .pdf) says what.
        run_folder: The run; it must have been explained.
        prototype: Its number.
        nearest: How many nearest training and test images are drawn.

    Raises:
        SettingsError: Another suffix, or there is no such prototype.
        RunFolderError: The run has not been explained, or the explanations are damaged.
        OSError: The file cannot be written.
    """
    path, folder = figure_path(path), Path(run_folder)
    summary = read_summary(folder)
    if summary is None:
        raise RunFolderError(
            f"{folder}: not explained yet; do it with: {command_line('explain', folder)}"
        )
    try:
        return _draw_prototype(path, folder, summary, prototype, nearest)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(
            f"{folder / FOLDER / SUMMARY}: not what protofast writes ({type(error).__name__}: "
            f"{error}); make it again with: {command_line('explain', folder)}"
        ) from error


def _draw_prototype(path: Path, folder: Path, summary: Json, prototype: int, nearest: int) -> Path:
    if not 0 <= prototype < len(summary["prototypes"]):
        raise SettingsError(
            f"prototype {prototype}: the run has prototypes 0 to {len(summary['prototypes']) - 1}"
        )
    entry = summary["prototypes"][prototype]
    rows = [
        (f"Nearest {words} images", entry["nearest"][which][:nearest])
        for which, words in (("train", "training"), ("test", "test"))
    ]
    step = 1.25
    width = 2 * _MARGIN + max(3, *(len(near) for _, near in rows)) * step
    with drawing(width, 2 * _MARGIN + 2.55 + len(rows) * 1.75) as canvas:
        owner = entry["class"]
        title = f"Prototype {prototype}"
        if owner is not None:
            title += f" of {on_one_line(summary['classes'][owner])}"
        canvas.text(_MARGIN, _MARGIN, title, size=11, weight="bold")
        y = _MARGIN + 0.25
        source = entry["source"]
        if source is None:
            canvas.text(_MARGIN, y + 0.1, "Not projected: no patch of a training image.")
        else:
            shown = stored(folder, summary, source["image"])
            heat = opened(standing(folder / FOLDER) / entry["heatmap"], "RGBA")
            size = summary["images"][source["image"]]["size"]
            canvas.picture(_MARGIN, y, 1.9, shown, size, box=tuple(source["box"]))
            canvas.picture(_MARGIN + 2.05, y, 1.9, shown, size, overlay=heat)
        y += 2.3
        for title, near in rows:
            canvas.text(_MARGIN, y, title, weight="bold")
            for place, row in enumerate(near):
                x = _MARGIN + place * step
                image = summary["images"][row["image"]]
                shown = stored(folder, summary, row["image"])
                canvas.picture(x, y + 0.12, 1.12, shown, image["size"], box=tuple(row["box"]))
                color = SOFT if owner in (None, image["label"]) else _AGAINST
                name = on_one_line(summary["classes"][image["label"]], 20)
                canvas.text(x, y + 1.36, name, size=7, color=color)
            y += 1.75
        return canvas.save(path)


def _draw_class(
    canvas: Canvas,
    y: float,
    part: ClassExplanation,
    predicted: bool,
    explanation: Explanation,
    classes: Sequence[str],
    crops: PrototypePictures,
) -> None:
    """The terms of one class's logit, from ``y`` inches below the top."""
    x = _MARGIN + _LEFT + 0.35
    question = f"{'Why' if predicted else 'Why not'} {on_one_line(classes[part.class_index])}?"
    canvas.text(x, y + 0.08, question, size=10, weight="bold")
    canvas.text(x, y + 0.26, f"logit {part.logit:.2f}, {part.probability:.1%}", color=SOFT)
    y += 0.38
    largest = max((abs(term.contribution) for term in part.shown), default=0.0) or 1.0
    for term in part.shown:
        owner = term.evidence.prototype_class
        stranger = owner is not None and owner != part.class_index
        name = f"prototype {term.evidence.prototype}"
        name += f" of {on_one_line(classes[owner], 24)}" if stranger and owner is not None else ""
        _draw_term(canvas, x, y, term, name, largest, explanation, crops)
        y += _ROW
    own = "other prototypes" if _classless(explanation) else "other prototypes of it"
    for rest, words in ((part.own, own), (part.others, "of other classes")):
        if rest.prototypes:
            canvas.text(x, y + 0.08, f"{rest.prototypes} {words}", color=SOFT)
            canvas.text(x + 4.9, y + 0.08, f"{rest.contribution:+.2f}", align="right")
            y += 0.2
    canvas.text(x, y + 0.08, "sum = logit", weight="bold")
    canvas.text(x + 4.9, y + 0.08, f"{part.total:.2f}", align="right", weight="bold")


def _draw_term(
    canvas: Canvas,
    x: float,
    y: float,
    term: Term,
    name: str,
    largest: float,
    explanation: Explanation,
    crops: PrototypePictures,
) -> None:
    side, found = _ROW - 0.1, term.evidence
    canvas.image(x, y, side, explanation.image, box=found.box)
    canvas.image(x + side + 0.06, y, side, explanation.image, overlay=coloured(found.heatmap))
    canvas.text(x + 2 * side + 0.36, y + side / 2, "looks\nlike", color=SOFT, align="center")
    there = x + 2 * side + 0.64
    crop = crops.crop(found.prototype)
    if crop is None:
        canvas.text(there + side / 2, y + side / 2, f"prototype\n{found.prototype}", align="center")
    else:
        canvas.picture(there, y, side, crop, crop.shape[:2], centred=True)
    beside = there + side + 0.15
    canvas.text(beside, y + 0.1, name, color=SOFT)
    canvas.text(
        beside, y + 0.3, f"{found.similarity:.2f} \N{MULTIPLICATION SIGN} {term.weight:.2f}"
    )
    canvas.text(x + 4.9, y + 0.3, f"= {term.contribution:.2f}", align="right", weight="bold")
    length = (x + 4.9 - beside) * abs(term.contribution) / largest
    canvas.bar(beside, y + 0.46, length, _FOR if term.contribution > 0 else _AGAINST)


def _classless(explanation: Explanation) -> bool:
    """Whether the model's prototypes belong to no class."""
    return all(found.prototype_class is None for found in explanation.activated)


def _height(part: ClassExplanation) -> float:
    rests = (part.own.prototypes > 0) + (part.others.prototypes > 0)
    return 0.38 + _ROW * len(part.shown) + 0.2 * rests + 0.2
