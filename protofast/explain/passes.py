"""What is measured on whole sets of images before anything is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protofast.data import Batch, Batches, ImageSet
from protofast.errors import DataError
from protofast.explain.local import Box
from protofast.heatmaps import high_activation_boxes, upsample
from protofast.models.protocol import PrototypeModel
from protofast.scan import evaluating, scan

Advance = Callable[[int], None]  # called with the number of images done so far

_PAIRS_AT_ONCE = 256


@dataclass(frozen=True)
class TrainingFacts:
    """How the prototypes share the training images of their class; tensors [P] on the CPU.

    Attributes:
        wins: For how many of them the prototype is the most similar one of its class (the first,
            if several tie).
        of: How many there are.
    """

    wins: Tensor
    of: Tensor


@dataclass(frozen=True)
class Decisions:
    """What the model says on a set: logits [n, C], labels [n], in the set's order, on the CPU."""

    logits: Tensor
    labels: Tensor

    @property
    def predicted(self) -> Tensor:
        """[n] int64."""
        return self.logits.argmax(dim=1)


@dataclass(frozen=True)
class Spot:
    """Where one prototype looks on one image.

    Attributes:
        box: Rectangle of its heat map's highest 5 %.
        similarity: The map's largest value.
        heatmap: [S, T] float32 on the CPU, or None if it was not asked for.
    """

    box: Box
    similarity: float
    heatmap: Tensor | None


def batches_of(image_set: ImageSet, batch_size: int) -> Batches:
    """The images in order, without augmentation."""
    return Batches(image_set, batch_size if image_set.size is not None else 1)


def training_facts(
    model: PrototypeModel, image_set: ImageSet, *, batch_size: int, progress: Advance | None = None
) -> TrainingFacts:
    """One pass over the training images."""
    count, device = model.num_prototypes, model.prototypes.device
    wins = torch.zeros(count, dtype=torch.int64, device=device)
    of = torch.zeros_like(wins)
    with evaluating(model):
        for batch in scan(model, batches_of(image_set, batch_size), progress):
            activations = batch.output.activations  # [N, P]
            if model.prototype_class is None:
                own = torch.ones_like(activations, dtype=torch.bool)
            else:
                own = batch.labels[:, None] == model.prototype_class  # [N, P]
            of += own.sum(dim=0)
            winner = activations.masked_fill(~own, -torch.inf).argmax(dim=1)  # [N]
            wins += torch.bincount(winner[own.any(dim=1)], minlength=count)
    return TrainingFacts(wins.cpu(), of.cpu())


def decisions(
    model: PrototypeModel, image_set: ImageSet, *, batch_size: int, progress: Advance | None = None
) -> Decisions:
    """One pass over the test images.

    Raises:
        DataError: The model gives logits that are not finite.
    """
    with evaluating(model):
        logits = [
            batch.output.logits.float().cpu()
            for batch in scan(model, batches_of(image_set, batch_size), progress)
        ]
    empty = torch.zeros((0, model.num_classes))
    found = torch.cat(logits) if logits else empty
    if not bool(found.isfinite().all()):
        bad = int((~found.isfinite()).any(dim=1).nonzero()[0])
        raise DataError(
            f"the model gives logits that are not finite for image {image_set.names[bad]}; its "
            "weights are damaged or training diverged"
        )
    return Decisions(found, image_set.labels)


def spots(
    model: PrototypeModel,
    image_set: ImageSet,
    images: Sequence[int],
    prototypes: Sequence[int],
    *,
    heatmaps: bool,
    batch_size: int,
    progress: Advance | None = None,
) -> list[Spot]:
    """Where ``prototypes[i]`` looks on image ``images[i]`` of the set, for pairs [M].

    Each image goes through the network once, however many prototypes are asked about it.
    """
    found: list[Spot | None] = [None] * len(images)
    done = 0
    for pairs, batch in _by_image(image_set, images, batch_size):
        with evaluating(model):
            features = model.features(batch.images.to(model.prototypes.device))
            for part in _parts(pairs, _PAIRS_AT_ONCE):
                rows = torch.tensor([row for row, _ in part], device=features.device)
                index = torch.tensor([[prototypes[pair]] for _, pair in part]).to(features.device)
                maps = model.similarity_map(features[rows], index)[:, 0]  # [M, H, W]
                large = upsample(maps, (batch.images.shape[2], batch.images.shape[3]))
                boxes = high_activation_boxes(large).tolist()
                tops = maps.flatten(1).amax(dim=1).tolist()
                kept = large.cpu() if heatmaps else None
                for place, (_, pair) in enumerate(part):
                    x0, y0, x1, y1 = boxes[place]
                    heatmap = None if kept is None else kept[place]
                    found[pair] = Spot((x0, y0, x1, y1), tops[place], heatmap)
        done += len(batch.images)
        if progress is not None:
            progress(done)
    return [spot for spot in found if spot is not None]


def _by_image(
    image_set: ImageSet, images: Sequence[int], batch_size: int
) -> Iterator[tuple[list[tuple[int, int]], Batch]]:
    """Batches of the distinct images, with pairs of (row in the batch, position in ``images``)."""
    wanted = sorted(set(images))
    pairs_of: dict[int, list[int]] = {image: [] for image in wanted}
    for pair, image in enumerate(images):
        pairs_of[image].append(pair)
    for batch in batches_of(image_set.subset(wanted), batch_size):
        originals = [wanted[position] for position in batch.index.tolist()]
        pairs = [(row, pair) for row, image in enumerate(originals) for pair in pairs_of[image]]
        yield pairs, batch


def _parts(pairs: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]
