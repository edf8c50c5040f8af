"""A figure measured in inches from its top left corner: texts, pictures, boxes, heat maps, bars.

It is drawn without pyplot, so no window, no global figure and no setting of the caller is touched,
and nothing has to be closed. matplotlib is imported when something is drawn: it takes a second, and
whoever wants numbers only does not need it.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from protofast.errors import SettingsError
from protofast.explain.local import Box
from protofast.explain.pictures import FRAME, Pixels, picture
from protofast.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOFT = "#58616a"
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
_LONGEST_NAME = 60


class Canvas:
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
        pixels: Pixels,
        size: Sequence[int],
        *,
        box: Box | None = None,
        overlay: Pixels | None = None,
        outlines: Sequence[Box] = (),
        centred: bool = False,
    ) -> None:
        """Pixels with the coordinates of an image of ``size`` (S, T), with a box or a heat map.

        Args:
            x: Left edge.
            y: Upper edge.
            side: Of the square that the picture is fitted into.
            pixels: What is drawn.
            size: Of the image.
            box: Drawn in yellow.
            overlay: Colours with opacity, laid over the pixels.
            outlines: Drawn dashed.
            centred: In the square, rather than in its upper left corner.
        """
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
        lines: list[tuple[Box, str, float, Any]] = []
        if box is not None:
            lines += [(box, "black", 2.2, "-"), (box, FRAME, 1.1, "-")]
        for outline in outlines:
            lines += [(outline, "black", 1.6, "-"), (outline, "white", 0.9, (0, (3, 2)))]
        for (x0, y0, x1, y1), color, line, style in lines:
            axes.add_patch(
                Rectangle(
                    (x0, y0),
                    x1 - x0,
                    y1 - y0,
                    fill=False,
                    color=color,
                    linewidth=line,
                    linestyle=style,
                )
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
def drawing(width: float, height: float) -> Iterator[Canvas]:
    """A canvas, with our own settings in place of the caller's for the moment."""
    import matplotlib

    defaults: Any = matplotlib.rcParamsDefault  # its type names every key, and differs by version
    settings: Any = {**defaults, **_STYLE, "backend": "agg"}
    with matplotlib.rc_context(settings):
        yield Canvas(width, height)


def figure_path(path: Path | str) -> Path:
    """The path, whose suffix must be that of a figure (.png, .svg, .pdf), or SettingsError."""
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise SettingsError(f"{path}: a figure's name must end in {', '.join(_SUFFIXES)}")
    return path


def on_one_line(text: str, longest: int = _LONGEST_NAME) -> str:
    """A class name on one line, shortened if need be."""
    shown = (c if unicodedata.category(c) not in ("Cc", "Cf", "Cs") else " " for c in str(text))
    plain = " ".join("".join(shown).split())
    return plain if len(plain) <= longest else plain[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
