"""Prototypes that start as patches of their own class (``model.prototype_init = "patches"``).

Each class's prototypes become the centres of its patches (k-means with k-means++ starts). Where a
linear head was trained in the warm stage, only the patches that speak for the class most take part,
so that prototypes start on the object and not on its background.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from protofast.data import Batches, ImageSet
from protofast.models import ProtoPNet
from protofast.scan import evaluating
from protofast.training.pooled import evidence

_IMAGES = 200  # of a class that take part, evenly spread
_SHARE = 0.2  # of the class's patches, those with the most evidence
_ROUNDS = 10  # of k-means


def start_from_patches(
    model: ProtoPNet,
    images: ImageSet,
    *,
    head: nn.Linear | None,
    batch_size: int,
    seed: int,
    tick: Callable[[int], None],
) -> None:
    """Overwrites the prototypes; a class without images keeps its own. Every rank does all of it.

    Args:
        model: The bare model.
        images: Training images, un-augmented.
        head: See :func:`protofast.training.pooled.build_head`; None lets all patches take part.
        batch_size: Images per batch.
        seed: Key of the random numbers.
        tick: Called with the number of images of each finished batch.
    """
    prototypes = model.prototypes
    starts: list[tuple[Tensor, Tensor]] = []
    with evaluating(model):
        for label in model.prototype_class.unique().tolist():
            chosen = _chosen(images, label)
            if len(chosen) == 0:
                continue
            batches = Batches(images.subset(chosen), batch_size, device=prototypes.device)
            patches = _patches(model, batches, head, label, tick)
            numbers = (model.prototype_class == label).nonzero()[:, 0]
            generator = torch.Generator().manual_seed((seed * 1_000_003 + label) % 2**64)
            starts.append((numbers, _centres(patches, len(numbers), generator)))
        for numbers, centres in starts:
            prototypes[numbers] = centres.to(prototypes.device)


def images_to_start_from(images: ImageSet) -> int:
    """How many images :func:`start_from_patches` looks at."""
    return sum(len(_chosen(images, label)) for label in range(len(images.classes)))


def _chosen(images: ImageSet, label: int) -> Tensor:
    members = (images.labels == label).nonzero()[:, 0]
    return members[:: max(1, -(-len(members) // _IMAGES))]


def _patches(
    model: ProtoPNet,
    batches: Batches,
    head: nn.Linear | None,
    label: int,
    tick: Callable[[int], None],
) -> Tensor:
    """Patches [n, D] of a class on the CPU, those with the most evidence only."""
    found, scores = [], []
    for batch in batches:
        maps = model.backbone(model.normalise(batch.images))
        features = model.add_on(maps)  # [N, D, H, W]
        found.append(features.permute(0, 2, 3, 1).flatten(0, 2).cpu())
        if head is not None:
            scores.append(evidence(head, maps, label).flatten().cpu())
        tick(len(batch.labels))
    patches = torch.cat(found)
    if head is None:
        return patches
    count = max(1, int(_SHARE * len(patches)))
    return patches[torch.cat(scores).argsort(descending=True, stable=True)[:count]]


def _centres(patches: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` centres [count, D] of patches [n, D] by k-means."""
    centres = patches[torch.randint(len(patches), (1,), generator=generator)]
    for _ in range(count - 1):
        far = _squared_distances(patches, centres).min(dim=1).values
        # Where fewer distinct patches exist than prototypes, some start equal.
        weights = far if float(far.sum()) > 0 else torch.ones_like(far)
        centres = torch.cat([centres, patches[torch.multinomial(weights, 1, generator=generator)]])
    for _ in range(_ROUNDS):
        nearest = _squared_distances(patches, centres).argmin(dim=1)
        members = nearest == torch.arange(count)[:, None]  # [count, n]
        sums = members.to(patches.dtype) @ patches
        sizes = members.sum(dim=1, keepdim=True)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def _squared_distances(patches: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(patches, centres).square()
