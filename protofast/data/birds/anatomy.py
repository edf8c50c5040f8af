"""The parts of a bird and their shapes.

All coordinates are those of a bird that looks to the right, about one unit long from breast to
vent, y down, its body around the origin. The head has a frame of its own, turned about the neck.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from protofast.data.birds.painter import Frame, Points, around, smooth

PARTS = (
    "beak",
    "crown",
    "crest",
    "eye",
    "face",
    "nape",
    "back",
    "rump",
    "breast",
    "belly",
    "wing",
    "tail",
    "legs",
)
PART = {name: number for number, name in enumerate(PARTS, start=1)}  # 0 is not the bird

HEAD = (0.44, -0.30)
HEAD_RADIUS = 0.205
NECK = (0.27, -0.12)
EYE = (0.515, -0.335)
TAIL_ROOT = (-0.55, 0.0)

# Each half of the beak from its base (at the head's rim) to its tip and back.
_BEAKS = {
    "cone": (
        [(0, -0.095), (0.10, -0.075), (0.205, 0.012), (0, 0.012)],
        [(0, 0.008), (0.185, 0.012), (0.08, 0.075), (0, 0.085)],
    ),
    "needle": (
        [(0, -0.045), (0.12, -0.028), (0.27, 0.005), (0, 0.005)],
        [(0, 0.003), (0.26, 0.006), (0.10, 0.032), (0, 0.04)],
    ),
    "dagger": (
        [(0, -0.07), (0.20, -0.04), (0.43, 0.008), (0, 0.008)],
        [(0, 0.005), (0.42, 0.01), (0.18, 0.05), (0, 0.065)],
    ),
    "curved": (
        [(0, -0.06), (0.16, -0.05), (0.31, 0.02), (0.4, 0.15), (0.28, 0.05), (0.14, 0.01), (0, 0)],
        [(0, 0), (0.14, 0.01), (0.28, 0.05), (0.37, 0.12), (0.24, 0.08), (0.12, 0.045), (0, 0.04)],
    ),
    "hooked": (
        [(0, -0.095), (0.12, -0.088), (0.205, -0.035), (0.215, 0.085), (0.165, 0.03), (0, 0.02)],
        [(0, 0.015), (0.155, 0.03), (0.12, 0.07), (0, 0.08)],
    ),
}  # fmt: skip
# The tail's end, from above to below.
_TAILS = {
    "square": [(-0.98, -0.06), (-1.00, 0.03), (-1.00, 0.11)],
    "forked": [(-1.16, -0.09), (-0.88, 0.03), (-1.13, 0.16)],
    "long": [(-1.25, -0.06), (-1.44, 0.02), (-1.25, 0.09)],
    "fan": [(-0.93, -0.20), (-1.06, 0.02), (-0.93, 0.22)],
}
_TRUNK = (
    (0.13, -0.30),
    (-0.10, -0.285),
    (-0.34, -0.20),
    (-0.52, -0.105),
    (-0.64, -0.04),
    (-0.64, 0.03),
    (-0.48, 0.115),
    (-0.24, 0.235),
    (0.04, 0.285),
    (0.28, 0.225),
    (0.45, 0.09),
)
WING = smooth(
    np.array(
        [
            (0.27, -0.05),
            (0.19, -0.145),
            (0.02, -0.185),
            (-0.28, -0.15),
            (-0.70, -0.005),
            (-0.40, 0.055),
            (-0.12, 0.105),
            (0.10, 0.105),
            (0.23, 0.05),
        ]
    )
)


@dataclass(frozen=True)
class Pose:
    """Where a bird is and how it holds itself."""

    body: Frame
    head: Frame
    tail: Frame
    plump: float  # how far the belly hangs
    turn: float  # share of the beak's length that shows
    feet: tuple[float, float]  # where they stand, in pixels
    perch: float  # direction of what it sits on, in radians


def outline(pose: Pose) -> Points:
    """The silhouette of body and head [k, 2], in pixels."""
    head = around(*HEAD, HEAD_RADIUS, 62, 22, -18, -58, -98, -136, -170)
    trunk = np.array([(x, y * pose.plump if y > 0.05 else y) for x, y in _TRUNK])
    points = np.concatenate([pose.head.to_pixels(head), pose.body.to_pixels(trunk)[1:]])
    return smooth(points)


def beak(shape: str, turn: float) -> tuple[Points, Points]:
    """Upper and lower half of the beak, in the head's frame."""
    base, ahead = (HEAD[0] + HEAD_RADIUS * 0.86, -0.285), np.array([turn, 1.0])
    upper, lower = _BEAKS[shape]
    return np.array(upper) * ahead + base, np.array(lower) * ahead + base


@cache
def tail(shape: str) -> Points:
    """The tail's outline in its frame: upper root, three points of its end, lower root."""
    return np.array([(-0.48, -0.095), *_TAILS[shape], (-0.46, 0.075)])


@cache
def crest(shape: str) -> list[Points]:
    """The crest's feathers, in the head's frame; they begin inside the head."""
    if shape == "none":
        return []
    if shape == "pointed":
        front = [(0.60, -0.43), (0.50, -0.53), (0.34, -0.64), (0.12, -0.71)]
        return [smooth(np.array([*front, (0.23, -0.54), (0.27, -0.36)]))]
    feathers = []
    for degrees in (-66, -88, -110, -132):
        root = around(*HEAD, HEAD_RADIUS * 0.9, degrees + 14, degrees - 14)
        tip = around(*HEAD, HEAD_RADIUS * 1.75, degrees - 10)
        bend = around(*HEAD, HEAD_RADIUS * 1.35, degrees + 6, degrees - 14)
        feather = np.concatenate([root[:1], bend[:1], tip, tip, bend[1:], root[1:]])
        feathers.append(smooth(feather, steps=4))
    return feathers


def extent(pose: Pose, *, beak_shape: str, tail_shape: str, crest_shape: str) -> Points:
    """Points that span the whole bird [k, 2], in pixels."""
    return np.concatenate(
        [
            pose.tail.to_pixels(tail(tail_shape)),
            pose.head.to_pixels(
                np.concatenate([*beak(beak_shape, pose.turn), *crest(crest_shape)])
            ),
            outline(pose),
            np.array([pose.feet]),
        ]
    )
