"""What is around a bird: background, perch, leaves in front. None of it knows the species."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from protofast.data.birds.anatomy import Pose
from protofast.data.birds.chance import Chance
from protofast.data.birds.painter import (
    Canvas,
    Colour,
    Frame,
    Points,
    mix,
    shade,
    smooth,
    whole,
)

_PIXELS = Frame(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
# Each kind of place: the colours at the top and bottom, and of what is scattered in it.
_PLACES: tuple[tuple[str, Colour, Colour, tuple[Colour, ...]], ...] = (
    ("sky", (120, 168, 214), (206, 222, 232), ((232, 238, 242), (176, 204, 228))),
    ("overcast", (186, 192, 196), (222, 222, 216), ((236, 236, 232), (170, 178, 186))),
    ("foliage", (74, 110, 56), (120, 148, 80), ((52, 88, 44), (140, 168, 88), (176, 192, 110))),
    ("forest", (40, 52, 40), (74, 78, 56), ((28, 38, 32), (98, 104, 70), (120, 110, 76))),
    ("reeds", (170, 176, 140), (140, 132, 84), ((190, 170, 104), (120, 118, 66), (206, 196, 142))),
    ("autumn", (176, 132, 70), (120, 84, 50), ((204, 150, 66), (150, 76, 44), (220, 186, 110))),
    ("water", (122, 150, 164), (88, 118, 132), ((150, 176, 186), (70, 98, 114), (190, 204, 206))),
    ("heath", (186, 168, 190), (126, 116, 96), ((158, 122, 162), (146, 146, 96), (206, 190, 196))),
)
_WOODS: tuple[Colour, ...] = ((104, 82, 62), (132, 112, 90), (88, 76, 70), (150, 128, 96))
_LEAVES: tuple[Colour, ...] = ((84, 128, 58), (120, 152, 70), (60, 100, 62), (170, 142, 66))


def paint_background(chance: Chance, size: tuple[int, int], detail: int) -> Image.Image:
    """A blurred place, painted small and enlarged."""
    width, height = max(8, size[0] // (2 * detail)), max(8, size[1] // (2 * detail))
    kind, top, bottom, scattered = _PLACES[chance.below(len(_PLACES))]
    ramp = np.linspace(0, 1, height)[:, None, None]
    colours = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
    rows = np.broadcast_to(colours, (height, width, 3)).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(rows))
    draw = ImageDraw.Draw(picture)
    unit = min(width, height)
    upright = kind in ("reeds", "forest")
    for _ in range(10 if upright else 16):
        colour = whole(shade(scattered[chance.below(len(scattered))], chance.between(0.85, 1.1)))
        x, y = chance.between(0, width), chance.between(0, height)
        if upright:
            lean = chance.between(-0.12, 0.12) * height
            thick = max(1, round(chance.between(0.02, 0.09) * unit))
            draw.line((x - lean, -2, x + lean, height + 2), fill=colour, width=thick)
        else:
            r = chance.between(0.04, 0.2) * unit
            wide = r * (2.4 if kind in ("sky", "water", "overcast") else 1.0)
            draw.ellipse((x - wide, y - r, x + wide, y + r), fill=colour)
    blurred = picture.filter(ImageFilter.GaussianBlur(chance.between(0.012, 0.06) * unit))
    final = blurred.resize((size[0] // detail, size[1] // detail), Image.Resampling.BICUBIC)
    return final.resize(size, Image.Resampling.NEAREST)


def paint_perch(canvas: Canvas, pose: Pose, chance: Chance) -> Colour:
    """The branch that the bird sits on; returns its colour."""
    width, unit = canvas.parts.width, pose.body.scale
    wood = shade(_WOODS[chance.below(len(_WOODS))], chance.between(0.85, 1.15))
    x, y = pose.feet
    thick = unit * chance.between(0.07, 0.17)
    slope = math.tan(pose.perch)
    xs = np.linspace(-0.1 * width, 1.1 * width, 9)
    bend = np.array([chance.between(-0.04, 0.04) for _ in xs]) * unit
    near = np.minimum(1.0, np.abs(xs - x) / (0.5 * unit))
    middle = y + 0.03 * unit + thick / 2 + slope * (xs - x) + bend * near
    taper = thick * np.linspace(chance.between(0.35, 0.6), chance.between(0.35, 0.6), 9)
    if chance.happens(0.3):
        side = x + chance.between(-0.9, 0.9) * unit
        _paint_twig(canvas, (side, y + slope * (side - x) + thick), unit, wood, chance)
    upper = smooth(np.stack([xs, middle - taper], 1), closed=False)
    lower = smooth(np.stack([xs, middle + taper], 1), closed=False)
    canvas.polygon(_PIXELS, np.concatenate([upper, lower[::-1]]), wood)
    shadow = upper + (lower - upper) * 0.62
    canvas.polygon(_PIXELS, np.concatenate([shadow, lower[::-1]]), shade(wood, 0.72))
    light = upper + (lower - upper) * 0.16
    canvas.line(_PIXELS, light, 0.022 * unit, shade(wood, 1.2))
    return wood


def _paint_twig(
    canvas: Canvas, root: tuple[float, float], unit: float, wood: Colour, chance: Chance
) -> None:
    """A twig behind the bird with a few leaves."""
    angle = math.radians(chance.between(-150, -30))
    length = unit * chance.between(0.6, 1.3)
    start = np.array(root)
    end = start + length * np.array([math.cos(angle), math.sin(angle)])
    canvas.line(_PIXELS, np.stack([start, end]), 0.05 * unit, shade(wood, 0.9))
    colour = _LEAVES[chance.below(len(_LEAVES))]
    for share in (0.45, 0.7, 1.0):
        at = start + (end - start) * share
        _paint_leaf(canvas, at, unit * chance.between(0.2, 0.36), chance.between(-3.1, 3.1), colour)


def _paint_leaf(
    canvas: Canvas, at: Points, length: float, angle: float, colour: Colour, part: int | None = None
) -> None:
    cos, sin = math.cos(angle) * length, math.sin(angle) * length
    frame = Frame(cos, -sin, float(at[0]), sin, cos, float(at[1]))
    upper = np.array([(0.0, 0.0), (0.3, -0.2), (0.7, -0.16), (1.0, 0.0)])
    edge = smooth(upper, closed=False)
    canvas.polygon(frame, np.concatenate([edge, edge[::-1] * (1, -1)]), colour, part)
    canvas.polygon(frame, edge * (1, -1), shade(colour, 0.82))
    canvas.line(frame, np.array([(0.0, 0.0), (0.95, 0.0)]), 0.03, shade(colour, 1.25))


def paint_foreground(canvas: Canvas, pose: Pose, wood: Colour, chance: Chance) -> None:
    """Leaves and stems in front of some birds; what they cover is no part of the bird any more."""
    unit, height = pose.body.scale, canvas.parts.height
    if chance.happens(0.3):
        colour = shade(_LEAVES[chance.below(len(_LEAVES))], chance.between(0.85, 1.1))
        for _ in range(1 + chance.below(3)):
            at = pose.body.to_pixels(
                np.array([(chance.between(-1.1, 0.3), chance.between(0.0, 0.5))])
            )[0]
            _paint_leaf(
                canvas, at, unit * chance.between(0.22, 0.42), chance.between(-3.1, 3.1), colour, 0
            )
    if chance.happens(0.15):
        x = pose.body.to_pixels(np.array([(chance.between(-1.0, 0.2), 0.0)]))[0, 0]
        lean = chance.between(-0.25, 0.25) * height
        xs = np.array([(x - lean, -2.0), (x, height / 2), (x + lean, height + 2.0)])
        stem = mix(wood, _LEAVES[chance.below(len(_LEAVES))], 0.6)
        canvas.line(_PIXELS, smooth(xs, closed=False), 0.05 * unit, stem, 0)
