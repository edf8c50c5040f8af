"""A canvas for shapes in a bird's own coordinates, which remembers which part is where."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Points = npt.NDArray[np.float64]  # [k, 2] x to the right, y down
Colour = tuple[float, float, float]  # red, green, blue in 0 … 255


@dataclass(frozen=True)
class Frame:
    """An affine map from a part's coordinates to pixels: (a x + b y + c, d x + e y + f)."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    def to_pixels(self, points: Points) -> Points:
        """Pixel coordinates [k, 2]."""
        # Elementwise, because a matrix product may round differently on another machine.
        x, y = points[:, 0], points[:, 1]
        pixels = np.empty_like(points)
        pixels[:, 0] = self.a * x + self.b * y + self.c
        pixels[:, 1] = self.d * x + self.e * y + self.f
        return pixels

    def turned(self, angle: float, x: float, y: float) -> Frame:
        """This frame after turning the part about (x, y) by ``angle`` radians, from x to y."""
        cos, sin = math.cos(angle), math.sin(angle)
        move_x, move_y = x - cos * x + sin * y, y - sin * x - cos * y
        return Frame(
            self.a * cos + self.b * sin,
            -self.a * sin + self.b * cos,
            self.a * move_x + self.b * move_y + self.c,
            self.d * cos + self.e * sin,
            -self.d * sin + self.e * cos,
            self.d * move_x + self.e * move_y + self.f,
        )

    @property
    def scale(self) -> float:
        """Pixels per unit."""
        return math.sqrt(abs(self.a * self.e - self.b * self.d))


class Canvas:
    """A picture and a map of part numbers, drawn hard-edged at several times the final size.

    Args:
        picture: What is painted on, in RGB; it may be smaller than the part map.
        parts: Part numbers, in mode "L". Frames speak of its pixels.
    """

    def __init__(self, picture: Image.Image, parts: Image.Image) -> None:
        self.picture = picture
        self.parts = parts
        self._paint = ImageDraw.Draw(picture)
        self._mark = ImageDraw.Draw(parts)
        self._detail = picture.width / parts.width

    def polygon(
        self, frame: Frame, points: Points, colour: Colour, part: int | None = None
    ) -> None:
        """Fills a polygon; ``part`` None leaves the part map as it is."""
        pixels = frame.to_pixels(points)
        self._paint.polygon((pixels * self._detail).ravel().tolist(), fill=whole(colour))
        if part is not None:
            self._mark.polygon(pixels.ravel().tolist(), fill=part)

    def line(
        self, frame: Frame, points: Points, width: float, colour: Colour, part: int | None = None
    ) -> None:
        """Draws a line whose width is in units of the frame, at least one pixel."""
        pixels = frame.to_pixels(points)
        thick = width * frame.scale
        self._paint.line(
            (pixels * self._detail).ravel().tolist(),
            fill=whole(colour),
            width=max(1, round(thick * self._detail)),
            joint="curve",
        )
        if part is not None:
            self._mark.line(pixels.ravel().tolist(), part, max(1, round(thick)), joint="curve")

    def disc(
        self,
        frame: Frame,
        at: tuple[float, float],
        radius: float,
        colour: Colour,
        part: int | None = None,
    ) -> None:
        """Fills a circle."""
        ((x, y),) = frame.to_pixels(np.array([at])).tolist()
        r = radius * frame.scale
        box = (x - r, y - r, x + r, y + r)
        self._paint.ellipse([value * self._detail for value in box], fill=whole(colour))
        if part is not None:
            self._mark.ellipse(box, fill=part)


def smooth(points: Points, *, closed: bool = True, steps: int = 6) -> Points:
    """A smooth curve through the points (Catmull-Rom), ``steps`` points per piece."""
    if closed:
        before, after, last = np.roll(points, 1, 0), np.roll(points, -1, 0), np.roll(points, -2, 0)
        start = points
    else:
        padded = np.concatenate([points[:1], points, points[-1:]])
        before, start, after, last = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = (np.arange(steps) / steps)[None, :, None]
    curve = start[:, None] + 0.5 * t * (
        (after - before)[:, None]
        + t
        * (
            (2 * before - 5 * start + 4 * after - last)[:, None]
            + t * (3 * (start - after) + last - before)[:, None]
        )
    )
    flat = curve.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, points[-1:]])


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    """An ellipse as a polygon; ``turn`` in radians."""
    u, v = rx * _CIRCLE[:, 0], ry * _CIRCLE[:, 1]
    cos, sin = math.cos(turn), math.sin(turn)
    return np.stack([x + cos * u - sin * v, y + sin * u + cos * v], 1)


def around(x: float, y: float, radius: float, *degrees: float) -> Points:
    """Points on a circle; 0 degrees is ahead (right), -90 is up."""
    return np.array(
        [
            (x + radius * math.cos(math.radians(k)), y + radius * math.sin(math.radians(k)))
            for k in degrees
        ]
    )


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The colour ``share`` of the way from the first to the second."""
    r, g, b = (p + (q - p) * share for p, q in zip(first, second, strict=True))
    return (r, g, b)


def shade(colour: Colour, factor: float) -> Colour:
    """Darker (factor below 1) or lighter (above 1)."""
    if factor <= 1:
        return (colour[0] * factor, colour[1] * factor, colour[2] * factor)
    return mix(colour, (255.0, 255.0, 255.0), min(1.0, factor - 1))


def whole(colour: Colour) -> tuple[int, int, int]:
    """The colour in whole numbers, as Pillow wants it."""
    r, g, b = (min(255, max(0, int(value + 0.5))) for value in colour)
    return (r, g, b)


_CIRCLE = around(0.0, 0.0, 1.0, *np.linspace(0, 360, 40, endpoint=False).tolist())
