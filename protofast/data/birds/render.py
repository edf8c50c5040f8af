"""One picture of a bird: its pose, what is around it, and the light."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from protofast.data.birds.anatomy import NECK, TAIL_ROOT, Pose, extent
from protofast.data.birds.chance import Chance
from protofast.data.birds.painter import Canvas, Frame, Points
from protofast.data.birds.plumage import individual_colours, paint_bird
from protofast.data.birds.scenery import paint_background, paint_foreground, paint_perch
from protofast.data.birds.species import Species

_BIRDS = 4  # purpose of these random numbers; see randomness.py


class Rendered(NamedTuple):
    """A picture and what is in it."""

    pixels: npt.NDArray[np.uint8]  # [S, T, 3]
    parts: npt.NDArray[np.uint8]  # [S, T] part numbers of what is visible, 0 elsewhere


def render(species: Species, key: tuple[int, int, int], size: tuple[int, int]) -> Rendered:
    """Renders an image.

    Args:
        species: Which bird.
        key: (seed, class, number of the image); together with the species it decides every pixel.
        size: (S, T) in pixels.
    """
    detail = min(8, max(3, -(-384 // max(size))))
    width, height = size[1] * detail, size[0] * detail
    chance = Chance(_BIRDS, *key)
    pose = _choose_pose(species, chance, width, height)
    picture = paint_background(chance, (width, height), detail)
    parts = Image.new("L", (width, height))
    canvas = Canvas(picture, parts)
    perch = paint_perch(canvas, pose, chance)
    colours = individual_colours(species, chance)
    paint_bird(canvas, species, colours, pose, chance)
    shape = _shape_of(parts, detail)
    paint_foreground(canvas, pose, perch, chance)
    pixels = _lit(np.asarray(picture.reduce(detail)), shape, pose, chance, detail)
    middle = np.asarray(parts)[detail // 2 :: detail, detail // 2 :: detail]
    return Rendered(pixels, np.ascontiguousarray(middle))


def _choose_pose(species: Species, chance: Chance, width: int, height: int) -> Pose:
    """A pose in which the whole bird is in the picture."""
    left = chance.happens(0.5)
    tilt = math.radians(chance.between(8, 48))
    lift = math.radians(chance.between(-16, 20)) - 0.75 * tilt
    wag = math.radians(chance.between(-14, 16))
    plump, turn = chance.between(0.92, 1.1), chance.between(0.8, 1.0)
    perch = math.radians(chance.between(-14, 14))
    drop = chance.between(0.36, 0.44)

    def pose(scale: float, x: float, y: float) -> Pose:
        cos, sin = math.cos(tilt), math.sin(tilt)
        side = -1.0 if left else 1.0
        body = Frame(side * scale * cos, side * scale * sin, x, -scale * sin, scale * cos, y)
        feet = body.to_pixels(np.array([(-0.02, 0.2)]))[0]
        return Pose(
            body=body,
            head=body.turned(-lift, *NECK),
            tail=body.turned(wag, *TAIL_ROOT),
            plump=plump,
            turn=turn,
            feet=(float(feet[0]), float(y + scale * drop)),
            perch=perch,
        )

    def box(at: Pose) -> tuple[Points, Points]:
        points = extent(
            at, beak_shape=species["beak"], tail_shape=species["tail"], crest_shape=species["crest"]
        )
        return points.min(0), points.max(0)

    low, high = box(pose(1.0, 0.0, 0.0))
    fill = chance.between(0.68, 0.96)
    scale = fill * min(width / (high[0] - low[0]), height / (high[1] - low[1]))
    low, high = low * scale, high * scale
    x = -low[0] + chance.number() * (width - (high[0] - low[0]))
    y = -low[1] + chance.number() * (height - (high[1] - low[1]))
    return pose(scale, float(x), float(y))


def _shape_of(parts: Image.Image, detail: int) -> Image.Image:
    """How much of each final pixel is bird, 0 … 255."""
    return parts.point([0] + [255] * 255).reduce(detail)


def _lit(
    pixels: npt.NDArray[np.uint8], shape: Image.Image, pose: Pose, chance: Chance, detail: int
) -> npt.NDArray[np.uint8]:
    """Adds volume to the bird, and the colour and strength of the light to the picture.

    The blurred silhouette is taken as the height of a rounded body; its slope towards the light
    brightens, away from it darkens.
    """
    unit = pose.body.scale / detail
    height = np.asarray(shape.filter(ImageFilter.GaussianBlur(0.11 * unit)), dtype=np.float32) / 255
    angle = math.radians(chance.between(-125, -55))
    slope_y, slope_x = np.gradient(height)
    slope = -(slope_x * np.float32(math.cos(angle)) + slope_y * np.float32(math.sin(angle))) * unit
    cover = np.asarray(shape, dtype=np.float32) / 255
    relief = 1 + cover * np.clip(slope * np.float32(0.26), -0.38, 0.22)
    warmth, strength = chance.between(-0.06, 0.06), chance.between(0.86, 1.12)
    tint = np.array([strength * (1 + warmth), strength, strength * (1 - warmth)], dtype=np.float32)
    values = pixels * relief[:, :, None] * tint
    lit: npt.NDArray[np.uint8] = np.clip(values + 0.5, 0, 255).astype(np.uint8)
    return lit
