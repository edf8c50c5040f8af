"""Figures for papers and slides: one explained image, one prototype; PNG, SVG or PDF.

They are drawn without pyplot, so no window, no global figure and no setting of the caller is
touched, and nothing has to be closed. matplotlib is imported when something is drawn: it takes a
second, and explanations in numbers do not need it.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from protofast.errors import RunFolderError, SettingsError, command_line
from protofast.explain.files import FOLDER, SUMMARY, Json, read_summary
from protofast.explain.local import Box, ClassExplanation, Explanation, Term
from protofast.explain.pictures import coloured, picture
from protofast.files import standing, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUFFIXES = (".png", ".svg", ".pdf")
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "protofast",  # the same figure gives the same file
    "pdf.fonttype": 42,
    "figure.dpi": 100,
    "savefig.dpi": 200,
}
_FOR, _AGAINST, _SOFT, _FRAME = "#0b6a62", "#ad4019", "#58616a", "#ffdf3d"
_ROW, _GAP, _MARGIN = 0.78, 0.42, 0.25  # inches
_WIDTH, _LEFT = 8.4, 2.5
_LONGEST_NAME = 60

Picture = np.ndarray[Any, np.dtype[np.uint8]]


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
    path = _checked(path)
    crops = _Crops.of(run_folder, checkpoint, len(explanation.classes[0].contributions))
    heights = [_height(part) for part in explanation.classes]
    height = max(sum(heights) + _GAP * (len(heights) - 1) + 2 * _MARGIN, _LEFT + 1.2)
    with _drawing(_WIDTH, height) as canvas:
        canvas.image(_MARGIN, _MARGIN, _LEFT, explanation.image)
        y = _MARGIN + canvas.fitted(_LEFT, explanation.image) + 0.22
        canvas.text(_MARGIN, y, _name(classes[explanation.predicted], 26), size=11, weight="bold")
        if explanation.label is not None and explanation.label != explanation.predicted:
            truth = f"in truth {_name(classes[explanation.label], 32)}"
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
    path, folder = _checked(path), Path(run_folder)
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
    with _drawing(width, 2 * _MARGIN + 2.55 + len(rows) * 1.75) as canvas:
        owner = entry["class"]
        title = f"Prototype {prototype}"
        if owner is not None:
            title += f" of {_name(summary['classes'][owner])}"
        canvas.text(_MARGIN, _MARGIN, title, size=11, weight="bold")
        y = _MARGIN + 0.25
        source = entry["source"]
        if source is None:
            canvas.text(_MARGIN, y + 0.1, "Not projected: no patch of a training image.")
        else:
            shown = _stored(folder, summary, source["image"])
            heat = _open(standing(folder / FOLDER) / entry["heatmap"], "RGBA")
            size = summary["images"][source["image"]]["size"]
            canvas.picture(_MARGIN, y, 1.9, shown, size, box=tuple(source["box"]))
            canvas.picture(_MARGIN + 2.05, y, 1.9, shown, size, overlay=heat)
        y += 2.3
        for title, near in rows:
            canvas.text(_MARGIN, y, title, weight="bold")
            for place, row in enumerate(near):
                x = _MARGIN + place * step
                image = summary["images"][row["image"]]
                shown = _stored(folder, summary, row["image"])
                canvas.picture(x, y + 0.12, 1.12, shown, image["size"], box=tuple(row["box"]))
                color = _SOFT if owner in (None, image["label"]) else _AGAINST
                name = _name(summary["classes"][image["label"]], 20)
                canvas.text(x, y + 1.36, name, size=7, color=color)
            y += 1.75
        return canvas.save(path)


def _draw_class(
    canvas: _Canvas,
    y: float,
    part: ClassExplanation,
    predicted: bool,
    explanation: Explanation,
    classes: Sequence[str],
    crops: _Crops,
) -> None:
    """The terms of one class's logit, from ``y`` inches below the top."""
    x = _MARGIN + _LEFT + 0.35
    question = f"{'Why' if predicted else 'Why not'} {_name(classes[part.class_index])}?"
    canvas.text(x, y + 0.08, question, size=10, weight="bold")
    canvas.text(x, y + 0.26, f"logit {part.logit:.2f}, {part.probability:.1%}", color=_SOFT)
    y += 0.38
    largest = max((abs(term.contribution) for term in part.shown), default=0.0) or 1.0
    for term in part.shown:
        owner = term.evidence.prototype_class
        stranger = owner is not None and owner != part.class_index
        name = f"prototype {term.evidence.prototype}"
        name += f" of {_name(classes[owner], 24)}" if stranger and owner is not None else ""
        _draw_term(canvas, x, y, term, name, largest, explanation, crops)
        y += _ROW
    own = "other prototypes" if _classless(explanation) else "other prototypes of it"
    for rest, words in ((part.own, own), (part.others, "of other classes")):
        if rest.prototypes:
            canvas.text(x, y + 0.08, f"{rest.prototypes} {words}", color=_SOFT)
            canvas.text(x + 4.9, y + 0.08, f"{rest.contribution:+.2f}", align="right")
            y += 0.2
    canvas.text(x, y + 0.08, "sum = logit", weight="bold")
    canvas.text(x + 4.9, y + 0.08, f"{part.total:.2f}", align="right", weight="bold")


def _draw_term(
    canvas: _Canvas,
    x: float,
    y: float,
    term: Term,
    name: str,
    largest: float,
    explanation: Explanation,
    crops: _Crops,
) -> None:
    side, found = _ROW - 0.1, term.evidence
    canvas.image(x, y, side, explanation.image, box=found.box)
    canvas.image(x + side + 0.06, y, side, explanation.image, overlay=coloured(found.heatmap))
    canvas.text(x + 2 * side + 0.36, y + side / 2, "looks\nlike", color=_SOFT, align="center")
    there = x + 2 * side + 0.64
    crop = crops.of_prototype(found.prototype)
    if crop is None:
        canvas.text(there + side / 2, y + side / 2, f"prototype\n{found.prototype}", align="center")
    else:
        canvas.picture(there, y, side, crop, crop.shape[:2], centred=True)
    beside = there + side + 0.15
    canvas.text(beside, y + 0.1, name, color=_SOFT)
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


class _Canvas:
    """A figure measured in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(self.figure)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 8.5,
        color: str = "black",
        weight: str = "normal",
        align: str = "left",
    ) -> None:
        """Plain text (a dollar sign is a dollar sign), centred vertically on ``y``."""
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            size=size,
            color=color,
            weight=weight,
            ha=align,
            va="center",
            parse_math=False,
        )

    def image(self, x: float, y: float, side: float, image: Any, **marks: Any) -> None:
        """An image [channels, S, T], fitted into a square; marks as for :meth:`picture`."""
        pixels = np.asarray(picture(image).convert("RGB"))
        self.picture(x, y, side, pixels, image.shape[-2:], **marks)

    def fitted(self, side: float, image: Any) -> float:
        """Height in inches of an image fitted into a square."""
        return float(side * image.shape[-2] / max(image.shape[-2:]))

    def picture(
        self,
        x: float,
        y: float,
        side: float,
        pixels: Picture,
        size: Sequence[int],
        *,
        box: Box | None = None,
        overlay: Picture | None = None,
        centred: bool = False,
    ) -> None:
        """Pixels with the coordinates of an image of ``size`` (S, T), with a box or a heat map."""
        from matplotlib.patches import Rectangle

        height, width = size
        wide, high = side * width / max(size), side * height / max(size)
        if centred:
            x, y = x + (side - wide) / 2, y + (side - high) / 2
        axes = self._axes(x, y, wide, high)
        extent = (0, width, height, 0)
        axes.imshow(pixels, extent=extent, aspect="auto", interpolation="bilinear")
        if overlay is not None:
            axes.imshow(overlay, extent=extent, aspect="auto", interpolation="bilinear")
        if box is not None:
            x0, y0, x1, y1 = box
            for color, line in (("black", 2.2), (_FRAME, 1.1)):
                axes.add_patch(
                    Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=color, linewidth=line)
                )
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)

    def bar(self, x: float, y: float, length: float, color: str) -> None:
        """A bar of this length in inches."""
        if length > 0:
            self._axes(x, y, length, 0.09).set_facecolor(color)

    def _axes(self, x: float, y: float, width: float, height: float) -> Axes:
        place = (
            x / self.width,
            1 - (y + height) / self.height,
            width / self.width,
            height / self.height,
        )
        axes = self.figure.add_axes(place)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def save(self, path: Path) -> Path:
        """Writes the figure, whole or not at all."""
        kind = path.suffix.lower().removeprefix(".")
        undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # A class name in a script that the font lacks is drawn with boxes; the figure is fine.
            warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
            warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
            self.figure.savefig(buffer, format=kind, metadata=undated)
        write_atomically(path, buffer.getvalue())
        return path


@contextmanager
def _drawing(width: float, height: float) -> Iterator[_Canvas]:
    """A canvas, with our own settings in place of the caller's for the moment."""
    import matplotlib

    defaults: Any = matplotlib.rcParamsDefault  # its type names every key, and differs by version
    settings: Any = {**defaults, **_STYLE, "backend": "agg"}
    with matplotlib.rc_context(settings):
        yield _Canvas(width, height)


@dataclass(frozen=True)
class _Crops:
    """The pictured patches of a run's prototypes."""

    folder: Path | None
    entries: Sequence[Json]

    @staticmethod
    def of(run_folder: Path | str | None, checkpoint: str | None, prototypes: int) -> _Crops:
        summary = None if run_folder is None else read_summary(Path(run_folder))
        if run_folder is None or summary is None or len(summary["prototypes"]) != prototypes:
            return _Crops(None, ())
        if checkpoint is not None and summary["checkpoint"]["name"] != checkpoint:
            return _Crops(None, ())
        return _Crops(standing(Path(run_folder) / FOLDER), summary["prototypes"])

    def of_prototype(self, prototype: int) -> Picture | None:
        """Its patch [S, T, 3], or None where there is no picture."""
        if self.folder is None or self.entries[prototype]["crop"] is None:
            return None
        path = self.folder / self.entries[prototype]["crop"]
        return _open(path, "RGB") if path.is_file() else None


def _stored(folder: Path, summary: Json, key: str) -> Picture:
    return _open(standing(folder / FOLDER) / summary["images"][key]["file"], "RGB")


def _open(path: Path, mode: str) -> Picture:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except OSError as error:  # gone, or no picture
        raise RunFolderError(
            f"{path}: cannot be read ({error}); explain the run again with: protofast explain"
        ) from error


def _checked(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise SettingsError(f"{path}: a figure's name must end in {', '.join(_SUFFIXES)}")
    return path


def _name(text: str, longest: int = _LONGEST_NAME) -> str:
    """A class name on one line, shortened if need be."""
    shown = (c if unicodedata.category(c) not in ("Cc", "Cf", "Cs") else " " for c in str(text))
    plain = " ".join("".join(shown).split())
    return plain if len(plain) <= longest else plain[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
