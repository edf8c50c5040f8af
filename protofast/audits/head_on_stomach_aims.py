"""What one attack of the audit starts from, what it aims at, and what became of it.

N images, H x W grid, S x T pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from protofast.audits.audit import Row
from protofast.audits.head_on_stomach_attack import Moved
from protofast.data.randomness import uniform
from protofast.models import Output

_TARGETS = 25  # purpose of these random numbers; see data/randomness.py

NOT_FINITE = "similarities not finite"
ONE_CELL = "grid of one cell"
FLAT = "flat map"
EVERYWHERE = "source covers every cell"
OUTSIDE = "largest similarity outside the source already"
NO_PIXEL = "target without a pixel"


class Clean(NamedTuple):
    """What the model makes of some images as they are.

    positions: int64 [N], in the set. images: [N, channels, S, T]. features: [N, D, H, W].
    ranked: int64 [N, K], the most activated prototypes, the first in front.
    """

    positions: Tensor
    images: Tensor
    features: Tensor
    output: Output
    ranked: Tensor

    def rows(self, index: Tensor) -> Clean:
        """Those of some images."""
        return Clean(
            self.positions[index],
            self.images[index],
            self.features[index],
            Output(*(part[index] for part in self.output)),
            self.ranked[index],
        )


class Aim(NamedTuple):
    """One prototype of each image, and what shall become of it.

    prototypes: int64 [N]. maps: [N, H, W], clean. sources, targets: bool [N, H, W].
    pixels: bool [N, S, T]. reasons: why it cannot be attacked; empty where it can, [N].
    """

    prototypes: Tensor
    maps: Tensor
    sources: Tensor
    targets: Tensor
    pixels: Tensor
    reasons: list[str]

    def rows(self, index: Tensor) -> Aim:
        """Those of some images."""
        return Aim(
            self.prototypes[index],
            self.maps[index],
            self.sources[index],
            self.targets[index],
            self.pixels[index],
            [self.reasons[place] for place in index.tolist()],
        )


def describe(clean: Clean, aim: Aim, moved: Moved) -> list[Row]:
    """What became of each image, as columns of its row.

    A `reason` alone where similarities are no longer finite.
    """
    noise = (moved.images - clean.images).double().flatten(1)
    numbers: dict[str, list[float]] = {"change": (noise.square().mean(1).sqrt() * 255).tolist()}
    cells: dict[str, list[int]] = {
        "prototype": aim.prototypes.tolist(),
        "source_cells": aim.sources.sum(dim=(1, 2)).tolist(),
        "target_cells": aim.targets.sum(dim=(1, 2)).tolist(),
        "class_after": moved.output.logits.argmax(dim=1).tolist(),
    }
    for when, maps in (("before", aim.maps), ("after", moved.maps)):
        place, columns = maps.flatten(1).argmax(dim=1), maps.shape[2]
        cells[f"row_{when}"] = (place // columns).tolist()
        cells[f"column_{when}"] = (place % columns).tolist()
        numbers[f"source_{when}"] = largest(maps, aim.sources).tolist()
        numbers[f"elsewhere_{when}"] = largest(maps, ~aim.sources).tolist()
        numbers[f"target_{when}"] = largest(maps, aim.targets).tolist()
    finite = _finite(moved.maps) & _finite(moved.output.logits)
    columns_of_rows = numbers | cells
    return [
        {name: values[place] for name, values in columns_of_rows.items()}
        if good
        else {"reason": NOT_FINITE}
        for place, good in enumerate(finite.tolist())
    ]


def largest(maps: Tensor, cells: Tensor) -> Tensor:
    """The largest similarity of maps [N, H, W] in the given cells: [N]."""
    return maps.masked_fill(~cells, -torch.inf).amax(dim=(1, 2))


def _finite(values: Tensor) -> Tensor:
    return values.flatten(1).isfinite().all(dim=1)


def one_cell(targets: Tensor, seed: int, positions: Tensor, prototypes: Tensor) -> Tensor:
    """One of the cells [N, H, W] of each image, keyed by (seed, image, prototype)."""
    keys = positions.numpy(), prototypes.cpu().numpy()
    dice = torch.from_numpy(uniform(targets[0].numel(), _TARGETS, seed, *keys))  # [N, H*W]
    dice = dice.to(targets.device).masked_fill(~targets.flatten(1), -1)
    cells = torch.zeros_like(targets.flatten(1)).scatter_(1, dice.argmax(1, keepdim=True), True)
    return cells.view_as(targets) & targets


def reasons_against(maps: Tensor, sources: Tensor, targets: Tensor, pixels: Tensor) -> list[str]:
    """Why each prototype cannot be attacked, or nothing."""
    flat = maps.flatten(1)
    tests = (
        (NOT_FINITE, ~_finite(maps)),
        (ONE_CELL, torch.full((len(maps),), flat.shape[1] == 1)),
        (FLAT, flat.amax(dim=1) == flat.amin(dim=1)),
        (EVERYWHERE, sources.flatten(1).all(dim=1)),
        (NO_PIXEL, ~pixels.flatten(1).any(dim=1)),
        (OUTSIDE, largest(maps, ~sources) > largest(maps, sources)),
    )
    found = [(reason, hit.tolist()) for reason, hit in tests]
    return [next((reason for reason, hit in found if hit[place]), "") for place in range(len(maps))]
