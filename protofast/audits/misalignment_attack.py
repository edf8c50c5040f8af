"""The attack of the spatial-misalignment benchmark: change an image outside what a map marks.

N images, P prototypes, K chosen ones of each image, H x W grid, S x T image.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from protofast.attacks import Objective, pgd, uniform_noise
from protofast.attacks.objectives import frozen
from protofast.audits.audit import AuditSettings
from protofast.audits.misalignment_metrics import MARGIN, QUANTILE, outside, protected_boxes
from protofast.heatmaps import PERCENTILE
from protofast.models import Output, PrototypeModel


class MisalignmentSettings(AuditSettings):
    """Settings of the spatial-misalignment benchmark; the defaults are the paper's.

    Attributes:
        protocol: See `AuditSettings`.
        prototypes: `top_proto`: the prototype with the largest similarity, whatever its class.
            `gt_protos`: all of the image's true class at once: their regions are protected
            together, the mean of their similarities is attacked, the metrics are those of the
            strongest of them.
        attack: `pgd` lowers the similarity step by step; `noise` adds uniform noise.
        epsilon: Radius in normalised units: of a channel, this many times the model's `std`.
        step_size: Of a step of `pgd`, likewise.
        steps: Of `pgd`.
        clip: Whether changed images stay within [0, 1].
        percentile: Of a map, whose pixels at or above it make the protected rectangle.
        margin: Pixels around the rectangle that are protected too.
        protect_border: Whether the last row and column can be protected.
        quantile: Of a map, above which pixels count as marked (`location_change`).
        clip_similarity: Whether similarities below 0 count as 0.
        images: How many images, drawn at random; None for all.
    """

    prototypes: Literal["top_proto", "gt_protos"] = "top_proto"
    attack: Literal["pgd", "noise"] = "pgd"
    epsilon: float = Field(default=0.4, ge=0)
    step_size: float = Field(default=0.01, ge=0)
    steps: int = Field(default=40, ge=0)
    clip: bool = True
    percentile: float = Field(default=PERCENTILE, ge=0, le=100)
    margin: int = Field(default=MARGIN, ge=0)
    protect_border: bool = True
    quantile: float = Field(default=QUANTILE, ge=0, le=1)
    clip_similarity: bool = False
    images: int | None = Field(default=None, ge=1)


PAPER = MisalignmentSettings()
RELEASED = MisalignmentSettings(
    protocol="released", attack="noise", clip=False, protect_border=False, clip_similarity=True
)


class Chosen(NamedTuple):
    """The prototypes at which an image is attacked.

    prototypes: int64 [N, K]. counts: bool [N, K], which of these there are: classes differ in how
    many prototypes they have. strongest: int64 [N], the one that is measured. tied: bool [N],
    whether others are just as strong.
    """

    prototypes: Tensor
    counts: Tensor
    strongest: Tensor
    tied: Tensor


class Seen(NamedTuple):
    """What a model makes of images.

    predicted: int64 [N], the class. activations: [N, P]. finite: bool [N], whether they and the
    logits are. maps: [N, H, W], of the strongest prototype.
    """

    predicted: Tensor
    activations: Tensor
    finite: Tensor
    maps: Tensor


class Examined(NamedTuple):
    """Images before and after the attack.

    changed: [N, channels, S, T], the images after it. chosen: the prototypes. boxes: int64
    [N, K, 4], the rectangles that are protected, of those chosen that count. free: bool
    [N, 1, S, T], where the images were changed. before, after: what the model makes of them.
    """

    changed: Tensor
    chosen: Chosen
    boxes: Tensor
    free: Tensor
    before: Seen
    after: Seen


def choose(activations: Tensor, among: Tensor, *, several: bool) -> Chosen:
    """The strongest prototype of each image, or all that come into question with it.

    Args:
        activations: [N, P].
        among: bool [N, P], which prototypes come into question; at least one of each image, or the
            first of all is taken, and counts for nothing.
        several: Whether all of these are attacked together, or the strongest alone.
    """
    allowed = activations.masked_fill(~among | activations.isnan(), -torch.inf)
    strongest = allowed.argmax(dim=1)  # the first, if several tie
    top = allowed.gather(1, strongest.unsqueeze(1))  # [N, 1]
    tied = ((allowed == top) & among).sum(dim=1) > 1
    if several:
        prototypes = among.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        prototypes = prototypes[:, : max([1, *among.sum(dim=1).tolist()])]
    else:
        prototypes = strongest.unsqueeze(1)
    return Chosen(prototypes, among.gather(1, prototypes), strongest, tied)


def lowered(model: PrototypeModel, chosen: Chosen) -> Objective:
    """What the attack maximises: minus the mean of the chosen prototypes' largest similarities."""

    def objective(images: Tensor, index: Tensor) -> Tensor:
        features = model.features(images)
        maps = model.similarity_map(features, chosen.prototypes[index])  # [b, K, H, W]
        largest = maps.flatten(2).max(dim=2).values  # [b, K]; of ties, the first gets the gradient
        counts = chosen.counts[index].to(largest.dtype)
        return -(largest * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)

    return objective


def attack(
    model: PrototypeModel,
    images: Tensor,
    chosen: Chosen,
    free: Tensor,
    settings: MisalignmentSettings,
    *,
    image_ids: Tensor,
    seed: int = 0,
) -> Tensor:
    """Images [N, channels, S, T], changed in the pixels `free` [N, 1, S, T] and nowhere else.

    Under `noise`, each value of a free pixel gets a number drawn uniformly from -epsilon to epsilon
    (times the channel's std), keyed by the image alone; under `pgd`, that is where it starts.
    """
    std = model.std.detach().to(images.dtype).view(-1, 1, 1)  # [channels, 1, 1]
    epsilon, bounds = settings.epsilon * std, (0.0, 1.0) if settings.clip else None
    if settings.attack == "pgd":
        found = pgd(
            lowered(model, chosen),
            images,
            epsilon=epsilon,
            step_size=settings.step_size * std,
            steps=settings.steps,
            bounds=bounds,
            mask=free,
            seed=seed,
            image_ids=image_ids,
            evaluate=False,
        )
        return found.images
    noise = uniform_noise(
        images.shape[1:],
        image_ids,
        seed=seed,
        low=-epsilon,
        high=epsilon,
        dtype=images.dtype,
        device=images.device,
    )
    changed = images + noise if bounds is None else (images + noise).clamp(*bounds)
    return torch.where(free, changed, images)


def examine(
    model: PrototypeModel,
    images: Tensor,
    among: Tensor,
    settings: MisalignmentSettings,
    *,
    image_ids: Tensor,
    seed: int = 0,
) -> Examined:
    """Attack images in one batch, and look at them before and after.

    Args:
        model: Looked at in eval mode, and left as it was.
        images: [N, channels, S, T] in [0, 1], in the dtype that the model computes in.
        among: bool [N, P], which prototypes come into question for each image.
        settings: Of the benchmark.
        image_ids: int64 [N], what keys each image's noise.
        seed: Likewise.
    """
    if images.device.type == "cpu":  # in this layout, a ResNet takes a tenth less there
        images = images.contiguous(memory_format=torch.channels_last)
    size = (images.shape[2], images.shape[3])
    several = settings.prototypes == "gt_protos"
    with frozen(model):
        with torch.no_grad():
            features = model.features(images)
            output = model.classify(features)
            chosen = choose(_clipped(output.activations, settings), among, several=several)
            boxes = protected_boxes(
                _clipped(model.similarity_map(features, chosen.prototypes), settings),
                size,
                percentile=settings.percentile,
                margin=settings.margin,
                whole=settings.protect_border,
            )
            free = outside(boxes, size, chosen.counts)
            before = _seen(model, features, output, chosen.strongest, settings)
        changed = attack(model, images, chosen, free, settings, image_ids=image_ids, seed=seed)
        with torch.no_grad():
            features = model.features(changed)
            output = model.classify(features)
            after = _seen(model, features, output, chosen.strongest, settings)
    return Examined(changed, chosen, boxes, free, before, after)


def _seen(
    model: PrototypeModel,
    features: Tensor,
    output: Output,
    strongest: Tensor,
    settings: MisalignmentSettings,
) -> Seen:
    finite = output.activations.isfinite().all(dim=1) & output.logits.isfinite().all(dim=1)
    maps = model.similarity_map(features, strongest.unsqueeze(1))[:, 0]
    return Seen(
        output.logits.argmax(dim=1),
        _clipped(output.activations, settings),
        finite,
        _clipped(maps, settings),
    )


def _clipped(similarities: Tensor, settings: MisalignmentSettings) -> Tensor:
    return similarities.clamp(min=0) if settings.clip_similarity else similarities
