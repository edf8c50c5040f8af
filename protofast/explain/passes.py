"""What is measured on whole sets of images before anything is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protofast.data import Batch, Batches, ImageSet
from protofast.errors import DataError, RunFolderError
from protofast.explain.local import Box
from protofast.explain.pictures import heatmap_png
from protofast.heatmaps import high_activation_boxes, upsample
from protofast.models.protocol import PrototypeModel
from protofast.scan import NO_IMAGE, Scanned, evaluating, first_not_finite, scan

Advance = Callable[[int], None]  # called with the number of images done so far

_PAIRS_AT_ONCE = 256

# A prototype no longer equals its patch: what is beyond the differences between devices (whose
# rounding is 1e-3 of a feature's length at most), relative to the prototypes' length.
_APART = 1e-2


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
        columns: W of the latent grid of this image, so that a location has a row and a column.
    """

    box: Box
    similarity: float
    columns: int


@dataclass(frozen=True)
class SourceSpot(Spot):
    """What has become of the patch that a prototype was projected on.

    The box is around that patch, also where the prototype now looks elsewhere on its source image,
    and the similarity is that to the patch. The heat map is that of the whole image.

    Attributes:
        heatmap: Its PNG file; thousands of heat maps of full size would fill the memory.
        apart: Euclidean length of the difference between prototype and patch, relative to the
            prototypes' root mean square length; 0 right after the projection.
    """

    heatmap: bytes
    apart: float

    @property
    def strayed(self) -> bool:
        """Whether the prototype no longer equals the patch."""
        return self.apart > _APART


def batches_of(image_set: ImageSet, batch_size: int) -> Batches:
    """The images in order, without augmentation."""
    return Batches(image_set, batch_size if image_set.size is not None else 1)


def training_facts(
    model: PrototypeModel, image_set: ImageSet, *, batch_size: int, progress: Advance | None = None
) -> TrainingFacts:
    """One pass over the training images.

    Raises:
        DataError: An image gives features or distances that are not finite.
    """
    count, device = model.num_prototypes, model.prototypes.device
    wins = torch.zeros(count, dtype=torch.int64, device=device)
    of = torch.zeros_like(wins)
    with evaluating(model):
        for batch in scan(model, batches_of(image_set, batch_size), progress):
            _check_finite(batch, image_set)
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
        DataError: An image gives features, distances or logits that are not finite.
    """
    logits = []
    with evaluating(model):
        for batch in scan(model, batches_of(image_set, batch_size), progress):
            _check_finite(batch, image_set)
            logits.append(batch.output.logits.float().cpu())
    empty = torch.zeros((0, model.num_classes))
    return Decisions(torch.cat(logits) if logits else empty, image_set.labels)


def spots(
    model: PrototypeModel,
    image_set: ImageSet,
    images: Sequence[int],
    prototypes: Sequence[int],
    *,
    batch_size: int,
) -> list[Spot]:
    """Where ``prototypes[i]`` looks on image ``images[i]`` of the set, for pairs [M].

    Each image goes through the network once, however many prototypes are asked about it.
    """
    found: dict[int, Spot] = {}
    with evaluating(model):
        for looked in _looks(model, image_set, images, prototypes, batch_size):
            boxes = high_activation_boxes(looked.heatmaps).tolist()
            tops = looked.maps.flatten(1).amax(dim=1).tolist()
            for m, pair in enumerate(looked.pairs):
                x0, y0, x1, y1 = boxes[m]
                found[pair] = Spot((x0, y0, x1, y1), tops[m], looked.maps.shape[2])
    return [found[pair] for pair in range(len(images))]


def source_spots(
    model: PrototypeModel,
    image_set: ImageSet,
    images: Sequence[int],
    prototypes: Sequence[int],
    locations: Sequence[int],
    *,
    batch_size: int,
) -> list[SourceSpot]:
    """What has become of patch ``locations[i]`` of image ``images[i]``, of ``prototypes[i]``.

    Raises:
        RunFolderError: A location lies outside the latent grid.
    """
    found: dict[int, SourceSpot] = {}
    vectors = model.prototypes.detach()  # [P, D]
    usual = vectors.double().square().sum(dim=1).mean().sqrt().clamp(min=1e-12)
    with evaluating(model):
        for looked in _looks(model, image_set, images, prototypes, batch_size):
            height, width = looked.maps.shape[1:]
            chosen = torch.tensor([locations[pair] for pair in looked.pairs])
            outside = (chosen < 0) | (chosen >= height * width)
            if bool(outside.any()):
                pair = looked.pairs[int(outside.nonzero()[0])]
                raise RunFolderError(
                    f"prototype {prototypes[pair]} comes from location {locations[pair]}, says the "
                    f"projection, but the latent grid is {height} x {width}; project again"
                )
            chosen = chosen.to(looked.maps.device)
            place = torch.arange(len(chosen), device=chosen.device)
            flat = looked.maps.flatten(1)  # [M, H*W]
            here, top = flat[place, chosen], flat.amax(dim=1)  # [M]
            patches = looked.features.flatten(2)[place, :, chosen]  # [M, D]
            own = vectors[[prototypes[pair] for pair in looked.pairs]]
            apart = ((patches.double() - own.double()).square().sum(dim=1).sqrt() / usual).tolist()
            around = high_activation_boxes(looked.heatmaps)  # [M, 4]
            boxes = torch.where((here < top)[:, None], _cells(chosen, looked), around).tolist()
            similarities, large = here.tolist(), looked.heatmaps.cpu()
            for m, pair in enumerate(looked.pairs):
                x0, y0, x1, y1 = boxes[m]
                heatmap = heatmap_png(large[m])
                found[pair] = SourceSpot(
                    (x0, y0, x1, y1), similarities[m], width, heatmap, apart[m]
                )
    return [found[pair] for pair in range(len(images))]


@dataclass(frozen=True)
class _Looked:
    """Some pairs of image and prototype: M positions among the pairs asked for, and their maps.

    features: [M, D, H, W]. maps: [M, H, W]. heatmaps: [M, S, T], the maps up-sampled.
    """

    pairs: list[int]
    features: Tensor
    maps: Tensor
    heatmaps: Tensor


def _looks(
    model: PrototypeModel,
    image_set: ImageSet,
    images: Sequence[int],
    prototypes: Sequence[int],
    batch_size: int,
) -> Iterator[_Looked]:
    """The similarity maps of all pairs, some at a time; to be used inside `evaluating`."""
    for pairs, batch in _by_image(image_set, images, batch_size):
        features = model.features(batch.images.to(model.prototypes.device))
        for part in _parts(pairs, _PAIRS_AT_ONCE):
            rows = features[[row for row, _ in part]]
            index = torch.tensor([[prototypes[pair]] for _, pair in part]).to(features.device)
            maps = model.similarity_map(rows, index)[:, 0]  # [M, H, W]
            large = upsample(maps, (batch.images.shape[2], batch.images.shape[3]))
            yield _Looked([pair for _, pair in part], rows, maps, large)


def _cells(locations: Tensor, looked: _Looked) -> Tensor:
    """The part of the image [M, 4] that each location's cell of the latent grid is drawn on."""
    (height, width), (s, t) = looked.maps.shape[1:], looked.heatmaps.shape[1:]
    row, column = locations // width, locations % width
    corners = (column * t, row * s, (column + 1) * t + width - 1, (row + 1) * s + height - 1)
    sides = (width, height, width, height)
    return torch.stack([edge // side for edge, side in zip(corners, sides, strict=True)], dim=1)


def _check_finite(batch: Scanned, image_set: ImageSet) -> None:
    """Raise DataError with the name of the first image that the model cannot cope with."""
    first = int(first_not_finite(batch, batch.output.distances))
    bad = batch.index[~batch.output.logits.isfinite().all(dim=1)]
    if first == NO_IMAGE and len(bad) == 0:
        return
    what = "logits" if first == NO_IMAGE else "features or distances"
    name = image_set.names[int(bad[0]) if first == NO_IMAGE else first]
    raise DataError(
        f"the model gives {what} that are not finite for image {name}; look at that image, and at "
        "the model's weights (a training that diverged)"
    )


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
