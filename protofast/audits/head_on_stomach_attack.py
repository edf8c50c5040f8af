"""Head on Stomach: noise that moves a prototype's activation to where the attacker wants it.

Hoffmann et al. 2021, section 3 and appendices C and F.1. A prototype finds "its" part of an image
at the source cells; after the attack it finds it somewhere else, though the image looks the same.

N images, H x W grid, S x T pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor

from protofast.attacks.objectives import activation, frozen
from protofast.attacks.pgd import Objective, pgd
from protofast.audits.cells import cells_of_boxes, pixels_of_cells
from protofast.heatmaps import high_activation_boxes, upsample
from protofast.models import Output, PrototypeModel

EPSILON, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 40
"""Of images in [0, 1], as in the paper."""

RandomStart = bool | Literal["unmasked"]


class Noise(TypedDict, total=False):
    """Options that others hand on to `head_on_stomach`; see there."""

    epsilon: float
    step_size: float
    steps: int
    random_start: RandomStart
    restarts: int
    seed: int


@dataclass(frozen=True)
class Moved:
    """What became of images and of one prototype's map on each.

    Attributes:
        images: [N, channels, S, T], attacked.
        pixels: bool [N, S, T], where noise was allowed.
        sources: bool [N, H, W], the cells where the prototype was.
        targets: bool [N, H, W], the cells where it is wanted.
        maps: [N, H, W], its similarity to every patch of the attacked images.
        output: What the model says of the attacked images.
    """

    images: Tensor
    pixels: Tensor
    sources: Tensor
    targets: Tensor
    maps: Tensor
    output: Output


def head_on_stomach(
    model: PrototypeModel,
    images: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    *,
    sources: Tensor | None = None,
    pixels: Tensor | None = None,
    epsilon: float = EPSILON,
    step_size: float = STEP_SIZE,
    steps: int = STEPS,
    random_start: RandomStart = True,
    restarts: int = 1,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> Moved:
    """Move one prototype of each image from its source cells to target cells.

    Projected gradient ascent on the mean similarity in the targets minus that in the sources
    (`cell_weights`); one forward and one backward pass per step for all images. The last iterate
    counts.

    Args:
        model: Any prototype model; it computes in eval mode.
        images: [N, channels, S, T] in [0, 1].
        prototypes: int64 [N], the prototype of each image.
        targets: bool [N, H, W], where each is wanted.
        sources: bool [N, H, W], where each is; None for the cells of the 95th-percentile box of its
            map.
        pixels: bool [N, S, T], where noise is allowed; None for the pixels of the targets.
        epsilon: Largest change of a value.
        step_size: Change per step.
        steps: How many.
        random_start: Start from uniform noise; `"unmasked"` lets that noise cover the whole image
            until the first step, as the released code does.
        restarts: How many starts; of several the one whose objective ended highest.
        seed: Key of the noise.
        image_ids: int64 [N], the images' own part of that key; None for 0 ... N-1.

    Raises:
        ValueError: shapes do not fit, or an image has no target cell.
    """
    _check_prototypes(prototypes, len(images))
    size = (images.shape[2], images.shape[3])
    with frozen(model), torch.no_grad():
        if sources is None:
            sources = source_cells(prototype_maps(model, images, prototypes), size)
        _check_targets(targets, sources)
        pixels = pixels_of_cells(targets, size) if pixels is None else pixels
        attacked = pgd(
            _weighted_map(model, prototypes, cell_weights(targets, sources)),
            images,
            epsilon=epsilon,
            step_size=step_size,
            steps=steps,
            random_start=random_start,
            mask=pixels.unsqueeze(1),
            restarts=restarts,
            seed=seed,
            image_ids=image_ids,
            evaluate=restarts > 1,
        ).images  # of one start, nothing is chosen by its value, and its end is looked at here
        features = model.features(attacked)
        maps = model.similarity_map(features, prototypes[:, None])[:, 0]
        return Moved(attacked, pixels, sources, targets, maps, model.classify(features))


def make_head_disappear(
    model: PrototypeModel,
    images: Tensor,
    prototypes: Tensor,
    *,
    epsilon: float = EPSILON,
    step_size: float = STEP_SIZE,
    steps: int = STEPS,
    seed: int = 0,
    image_ids: Tensor | None = None,
) -> Tensor:
    """Lower the largest similarity of one prototype of each image by noise where it was found.

    The noise is confined to the 95th-percentile box of the clean map (released code of Hoffmann et
    al. 2021, its third attack).

    Args:
        model: See `head_on_stomach`, as for the other arguments.
        images: [N, channels, S, T] in [0, 1].
        prototypes: int64 [N].
        epsilon: See there.
        step_size: See there.
        steps: See there.
        seed: See there.
        image_ids: See there.

    Returns:
        The attacked images [N, channels, S, T].
    """
    _check_prototypes(prototypes, len(images))
    size = (images.shape[2], images.shape[3])
    with frozen(model), torch.no_grad():
        heatmaps = upsample(prototype_maps(model, images, prototypes), size)
        boxes = high_activation_boxes(heatmaps)
        inside = cells_of_boxes(boxes, size, size)  # of a grid that has a cell for each pixel
        return pgd(
            activation(model, prototypes, sign=-1),
            images,
            epsilon=epsilon,
            step_size=step_size,
            steps=steps,
            mask=inside.unsqueeze(1),
            seed=seed,
            image_ids=image_ids,
            evaluate=False,
        ).images


def prototype_maps(model: PrototypeModel, images: Tensor, prototypes: Tensor) -> Tensor:
    """Similarity maps [N, H, W] of one prototype (int64 [N]) of each image."""
    return model.similarity_map(model.features(images), prototypes[:, None])[:, 0]


def source_cells(maps: Tensor, size: tuple[int, int], *, border: bool = False) -> Tensor:
    """Where a prototype is: the cells of the 95th-percentile box of its up-sampled map.

    Args:
        maps: [N, H, W], of clean images.
        size: (S, T), of these images.
        border: See `cells_of_boxes`.

    Returns:
        bool [N, H, W]; all cells for a flat map, or one that holds NaN.
    """
    grid = (maps.shape[1], maps.shape[2])
    return cells_of_boxes(high_activation_boxes(upsample(maps, size)), size, grid, border=border)


def cell_weights(targets: Tensor, sources: Tensor) -> Tensor:
    """What each cell counts in the objective of Hoffmann et al. 2021, Eq. 2: float64 [N, H, W].

    The objective is the mean of the similarity g over the targets minus its mean over the sources.
    A cell that is both counts as a target, and as a 0 among the sources (released code), so that
    targets which cover the whole grid leave the mean of the map alone.
    """
    wanted, left = (cells.sum(dim=(1, 2), keepdim=True).double() for cells in (targets, sources))
    return targets / wanted - (sources & ~targets) / left.clamp_min(1)


def _weighted_map(model: PrototypeModel, prototypes: Tensor, weights: Tensor) -> Objective:
    """The sum of weights [N, H, W] times similarities."""

    def objective(images: Tensor, index: Tensor) -> Tensor:
        maps = prototype_maps(model, images, prototypes[index])
        return (maps * weights[index].to(maps.dtype)).flatten(1).sum(dim=1)

    return objective


def _check_prototypes(prototypes: Tensor, count: int) -> None:
    if prototypes.dtype != torch.int64 or prototypes.shape != (count,):
        raise ValueError(
            f"prototypes must be int64 [{count}], one of each image; got {prototypes.dtype} "
            f"{list(prototypes.shape)}"
        )


def _check_targets(targets: Tensor, sources: Tensor) -> None:
    if targets.dtype != torch.bool or targets.shape != sources.shape:
        raise ValueError(
            f"targets must be bool {list(sources.shape)}, the cells of each image; got "
            f"{targets.dtype} {list(targets.shape)}"
        )
    if not bool(targets.flatten(1).any(dim=1).all()):
        raise ValueError("every image needs a target cell; leave out those without")
