"""Painting one bird, from what is farthest to what is nearest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from protofast.data.birds.anatomy import (
    EYE,
    HEAD,
    PART,
    WING,
    Pose,
    beak,
    crest,
    outline,
    tail,
)
from protofast.data.birds.chance import Chance
from protofast.data.birds.painter import (
    Canvas,
    Colour,
    Frame,
    around,
    ellipse,
    mix,
    shade,
    smooth,
)
from protofast.data.birds.species import Species

_COLOURS: dict[str, Colour] = {
    "red": (196, 44, 38),
    "black": (40, 40, 46),
    "yellow": (242, 200, 58),
    "blue": (58, 104, 186),
    "chestnut": (140, 70, 38),
    "white": (240, 238, 230),
    "olive": (120, 124, 66),
    "slate": (96, 110, 130),
    "brown": (128, 94, 64),
    "teal": (44, 128, 132),
    "orange": (232, 128, 46),
    "rose": (214, 110, 112),
    "grey": (168, 170, 172),
    "cream": (240, 224, 184),
    "dark": (52, 48, 50),
    "pink": (222, 150, 140),
}
_PIXELS = Frame(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Colours:
    """The colours of one bird: its species' with a little of its own."""

    crown: Colour
    mantle: Colour
    breast: Colour
    belly: Colour
    bill: Colour
    legs: Colour
    rump: Colour
    mark: Colour  # spots, streaks and band of the breast, mask of the face
    light: Colour  # wing bars, marks of the tail, brow and eye ring


def individual_colours(species: Species, chance: Chance) -> Colours:
    """The colours of one bird of a species."""
    light = chance.between(0.93, 1.07)

    def own(name: str) -> Colour:
        r, g, b = _COLOURS[name]
        dice = [chance.between(0.95, 1.05) * light for _ in range(3)]
        return (r * dice[0], g * dice[1], b * dice[2])

    mantle = own(species["mantle"])
    rump = own("white" if species["rump"] == "plain" else species["rump"])
    return Colours(
        crown=own(species["crown"]),
        mantle=mantle,
        breast=own(species["breast"]),
        belly=own(species["belly"]),
        bill=own(species["bill"]),
        legs=own(species["legs"]),
        rump=mantle if species["rump"] == "plain" else rump,
        mark=own("dark"),
        light=own("white"),
    )


def paint_bird(
    canvas: Canvas, species: Species, colours: Colours, pose: Pose, chance: Chance
) -> None:
    """Paints a bird and marks its parts."""
    _paint_tail(canvas, species, colours, pose)
    _paint_legs(canvas, colours, pose)
    for feather in crest(species["crest"]):
        canvas.polygon(pose.head, feather, shade(colours.crown, 0.9), PART["crest"])
    _paint_beak(canvas, species, colours, pose)
    _paint_body(canvas, species, colours, pose, chance)
    _paint_wing(canvas, species, colours, pose)
    _paint_eye(canvas, species, colours, pose)


def _paint_legs(canvas: Canvas, colours: Colours, pose: Pose) -> None:
    unit = pose.body.scale
    along = np.array([math.cos(pose.perch), math.sin(pose.perch)])
    ahead = 1.0 if pose.body.a > 0 else -1.0
    hips = pose.body.to_pixels(np.array([(-0.10, 0.16), (0.04, 0.18)]))
    for number, hip in enumerate(hips):
        foot = np.array(pose.feet) + along * ((number - 0.5) * 0.18 * unit * ahead)
        colour = shade(colours.legs, 0.8 if number == 0 else 1.0)
        knee = foot + np.array([-0.03 * ahead, -0.06]) * unit
        canvas.line(_PIXELS, np.stack([hip, knee, foot]), 0.042 * unit, colour, PART["legs"])
        for toe in (-0.08, 0.0, 0.08):
            tip = foot + (along * toe + np.array([0.0, 0.045])) * unit
            canvas.line(_PIXELS, np.stack([foot, tip]), 0.036 * unit, colour, PART["legs"])


def _paint_tail(canvas: Canvas, species: Species, colours: Colours, pose: Pose) -> None:
    frame, shape = pose.tail, tail(species["tail"])
    base = shade(colours.mantle, 0.75)
    canvas.polygon(frame, shape, base, PART["tail"])
    root = np.stack([shape[0], (shape[0] + shape[4]) / 2, shape[4]])
    end = shape[1:4]

    def band(start: float, stop: float) -> None:
        near, far = root + (end - root) * start, root + (end - root) * stop
        canvas.polygon(frame, np.concatenate([near, far[::-1]]), colours.light)

    if species["bands"] == "tip":
        band(0.80, 1.0)
    elif species["bands"] == "bands":
        for start in (0.40, 0.62, 0.84):
            band(start, start + 0.11)
    for share in (0.25, 0.5, 0.75):  # the shafts between the feathers
        tip = (
            end[0] + (end[1] - end[0]) * share * 2
            if share <= 0.5
            else end[1] + (end[2] - end[1]) * (share * 2 - 1)
        )
        base_point = root[0] + (root[2] - root[0]) * share
        canvas.line(frame, np.stack([base_point, tip]), 0.012, shade(base, 0.62))


def _paint_beak(canvas: Canvas, species: Species, colours: Colours, pose: Pose) -> None:
    upper, lower = beak(species["beak"], pose.turn)
    for half, colour in ((lower, shade(colours.bill, 0.70)), (upper, colours.bill)):
        bent = smooth(half, closed=False, steps=4) if len(half) > 4 else half
        canvas.polygon(pose.head, bent, colour, PART["beak"])
    ridge = np.stack([upper[0] * 0.7 + upper[-1] * 0.3, upper[1] * 0.75 + upper[-1] * 0.25])
    canvas.line(pose.head, ridge, 0.016, shade(colours.bill, 1.3))


def _paint_body(
    canvas: Canvas, species: Species, colours: Colours, pose: Pose, chance: Chance
) -> None:
    """Body and head: patches of colour with soft rims, cut out along the silhouette."""
    width, height = canvas.picture.size
    picture = Image.new("RGB", (width // 2, height // 2))
    parts = Image.new("L", (width, height), PART["back"])
    soft = Canvas(picture, parts)
    _paint_patches(soft, species, colours, pose)
    blurred = picture.filter(ImageFilter.BoxBlur(pose.body.scale * 0.009))
    large = Canvas(blurred.resize((width, height), Image.Resampling.NEAREST), parts)
    _paint_feathers(large, colours, pose, chance)
    _paint_breast_pattern(large, species, colours, pose, chance)
    stencil = Image.new("1", (width, height))
    ImageDraw.Draw(stencil).polygon(outline(pose).ravel().tolist(), fill=1)
    canvas.picture.paste(large.picture, (0, 0), stencil)
    canvas.parts.paste(parts, (0, 0), stencil)


def _paint_patches(canvas: Canvas, species: Species, colours: Colours, pose: Pose) -> None:
    """The regions of body and head; the last one painted is on top."""
    body, head = pose.body, pose.head
    everywhere = ellipse(0.0, 0.0, 3.0, 3.0)
    canvas.polygon(body, everywhere, colours.mantle, PART["back"])
    belly = np.array([(-0.75, 0.045), (-0.3, 0.0), (0.7, -0.05), (0.8, 0.6), (-0.8, 0.6)])
    canvas.polygon(body, belly, colours.belly, PART["belly"])
    breast = np.array(
        [(0.80, -0.16), (0.30, -0.16), (0.14, -0.02), (0.05, 0.14), (0.02, 0.40), (0.8, 0.5)]
    )
    canvas.polygon(body, smooth(breast), colours.breast, PART["breast"])
    rump = ellipse(-0.50, -0.10, 0.17, 0.085, -0.35)
    canvas.polygon(body, rump, colours.rump, PART["rump"])
    face = mix(colours.mantle, colours.light, 0.28)
    canvas.polygon(head, ellipse(*HEAD, 0.235, 0.222), face, PART["face"])
    throat = np.array([(0.72, -0.235), (0.52, -0.20), (0.36, -0.12), (0.30, -0.02), (0.75, -0.02)])
    canvas.polygon(head, throat, colours.breast, PART["breast"])
    nape = np.concatenate([around(*HEAD, 0.15, -128, -195), around(*HEAD, 0.36, -200, -128)])
    canvas.polygon(head, nape, shade(colours.mantle, 0.86), PART["nape"])
    cap = np.array(
        [(0.66, -0.345), (0.50, -0.385), (0.36, -0.36), (0.20, -0.27), (0.10, -0.60), (0.70, -0.60)]
    )
    canvas.polygon(head, smooth(cap, steps=3), colours.crown, PART["crown"])
    shadow = WING + np.array([0.0, 0.035])
    canvas.polygon(body, shadow, mix(colours.belly, colours.mark, 0.55))


def _paint_feathers(canvas: Canvas, colours: Colours, pose: Pose, chance: Chance) -> None:
    """Short strokes along the body that suggest feathers."""
    for _ in range(26):
        x, y = chance.between(-0.45, 0.42), chance.between(-0.24, 0.24)
        colour = colours.mantle if y < -0.02 else colours.breast if x > 0.1 else colours.belly
        stroke = np.array([(x, y), (x - 0.035, y + 0.016), (x - 0.075, y + 0.012)])
        canvas.line(pose.body, stroke, 0.010, shade(colour, 0.87 if chance.happens(0.6) else 1.10))


def _paint_breast_pattern(
    canvas: Canvas, species: Species, colours: Colours, pose: Pose, chance: Chance
) -> None:
    body, kind = pose.body, species["pattern"]
    if kind == "banded":
        upper = np.array([(0.60, -0.02), (0.42, 0.03), (0.26, -0.01), (0.16, -0.10)])
        lower = np.array([(0.10, -0.04), (0.24, 0.075), (0.40, 0.12), (0.60, 0.08)])
        band = np.concatenate([smooth(upper, closed=False), smooth(lower, closed=False)])
        canvas.polygon(body, band, colours.mark)
        return
    if kind == "plain":
        return
    jitter = 0.010
    if kind == "spotted":
        for row in range(5):
            for column in range(4):
                x = 0.47 - 0.10 * column - 0.025 * row + chance.between(-jitter, jitter)
                y = -0.06 + 0.080 * row + 0.04 * (column % 2) + chance.between(-jitter, jitter)
                canvas.disc(body, (x, y), 0.029, colours.mark)
        return
    for column in range(6):
        x = 0.47 - 0.080 * column + chance.between(-jitter, jitter)
        top = -0.07 + 0.05 * (column % 2) + chance.between(-jitter, jitter)
        for start in (top, top + 0.17):
            streak = np.array([(x, start), (x - 0.045, start + 0.07), (x - 0.10, start + 0.13)])
            canvas.line(body, smooth(streak, closed=False, steps=3), 0.028, colours.mark)


def _paint_wing(canvas: Canvas, species: Species, colours: Colours, pose: Pose) -> None:
    body = pose.body
    base = shade(colours.mantle, 0.92)
    dark = shade(colours.mantle, 0.60)
    canvas.polygon(body, WING, base, PART["wing"])
    flight = np.array(
        [(0.02, 0.0), (-0.26, -0.075), (-0.70, -0.005), (-0.40, 0.055), (-0.10, 0.12), (0.06, 0.11)]
    )
    canvas.polygon(body, smooth(flight, steps=4), shade(colours.mantle, 0.70))
    for number in range(5):  # flight feathers
        share = number / 4
        start = np.array([-0.02 - 0.16 * share, 0.105 - 0.155 * share])
        end = np.array([-0.36 - 0.26 * share, 0.062 - 0.075 * share])
        canvas.line(body, np.stack([start, (start + end) / 2 + (0.0, 0.008), end]), 0.012, dark)
    for x, y in ((0.22, -0.06), (0.13, -0.11), (0.16, 0.02), (0.05, -0.05), (0.08, 0.07)):
        scallop = np.array([(x + 0.035, y + 0.03), (x - 0.02, y + 0.035), (x - 0.035, y - 0.015)])
        canvas.line(body, smooth(scallop, closed=False, steps=3), 0.012, shade(base, 0.78))
    if species["wing"] == "barred":
        for shift in (0.0, -0.155):
            bar = np.array([(0.10, -0.155), (0.055, -0.04), (0.10, 0.115)])
            if shift:
                bar = bar * (1.0, 0.86) + (shift, -0.008)
            canvas.line(body, smooth(bar, closed=False), 0.046, colours.light)
    elif species["wing"] == "patched":
        patch = np.array(
            [(-0.02, 0.035), (-0.17, -0.03), (-0.30, -0.01), (-0.20, 0.06), (-0.06, 0.09)]
        )
        canvas.polygon(body, smooth(patch, steps=4), colours.light)


def _paint_eye(canvas: Canvas, species: Species, colours: Colours, pose: Pose) -> None:
    head, (x, y) = pose.head, EYE
    if species["face"] == "masked":
        mask = np.array(
            [
                (0.66, -0.31),
                (0.52, -0.40),
                (0.36, -0.34),
                (0.26, -0.28),
                (0.40, -0.265),
                (0.55, -0.27),
            ]
        )
        canvas.polygon(head, smooth(mask, steps=4), colours.mark)
    elif species["face"] == "browed":
        brow = np.array([(0.63, -0.365), (0.52, -0.405), (0.38, -0.385), (0.26, -0.32)])
        canvas.line(head, smooth(brow, closed=False), 0.040, colours.light)
    elif species["face"] == "ringed":
        canvas.disc(head, EYE, 0.068, colours.light)
    canvas.disc(head, EYE, 0.044, (26.0, 22.0, 22.0), PART["eye"])
    # The light comes from above on either side, so the glint is always up.
    canvas.disc(head, (x + 0.012, y - 0.015), 0.013, (250.0, 250.0, 250.0))
