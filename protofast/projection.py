"""Projection ("push"): every prototype becomes the nearest patch of an image of its own class."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from protofast.models.protocol import PrototypeModel
from protofast.scan import LabelledImages, Scanned, evaluating, gather_ranks, raise_not_finite, scan

_NO_IMAGE = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Projection:
    """Where each prototype came from; tensors [P] on the CPU.

    distances: from the prototype as it was to its nearest patch, in the model's metric; NaN where the
        class has no image.
    images: int64, position of the source image in its set; -1 where the class has no image.
    locations: int64, the patch in the latent map, row-major; -1 where the class has no image.
    moved: Euclidean length of the prototype's jump; 0 where it stayed.
    empty_classes: the classes that have prototypes and no image.
    """

    distances: Tensor
    images: Tensor
    locations: Tensor
    moved: Tensor
    empty_classes: tuple[int, ...]


@dataclass
class _Nearest:
    """The best patch of each prototype so far, on the model's device."""

    distances: Tensor  # [P]
    images: Tensor  # [P] int64, _NO_IMAGE for none
    locations: Tensor  # [P] int64
    patches: Tensor  # [P, D]
    not_finite: Tensor  # [] int64, the first image with NaN or infinite features

    @staticmethod
    def nothing(prototypes: Tensor) -> "_Nearest":
        count = prototypes.shape[0]
        infinite = prototypes.new_full((count,), torch.inf, dtype=torch.float64)
        no_image = torch.full((count,), _NO_IMAGE, device=prototypes.device)
        return _Nearest(
            infinite,
            no_image,
            torch.full_like(no_image, -1),
            prototypes.detach().to(torch.float64, copy=True),
            no_image.new_full((), _NO_IMAGE),
        )

    def update(self, other: "_Nearest") -> None:
        """Take over what `other` has nearer; equal distances go to the earlier image."""
        equal = (other.distances == self.distances) & (other.images < self.images)
        better = (other.distances < self.distances) | equal
        self.distances = torch.where(better, other.distances, self.distances)
        self.images = torch.where(better, other.images, self.images)
        self.locations = torch.where(better, other.locations, self.locations)
        self.patches = torch.where(better.unsqueeze(1), other.patches, self.patches)
        self.not_finite = torch.minimum(self.not_finite, other.not_finite)


def project_prototypes(
    model: PrototypeModel,
    batches: Iterable[LabelledImages],
    *,
    progress: Callable[[int], None] | None = None,
) -> Projection:
    """Replace every prototype by the nearest patch among the images of its class ("push").

    Chen et al. 2019, section 2.2. The scan runs in eval mode without gradients, batched on the model's
    device; nothing is written before it is complete. Equal distances go to the image that comes first in
    its set and to the first location in row-major order, so that, given equal features, the result
    depends neither on the batches' size and order nor on the number of ranks. The patch is copied bit by
    bit: the same image gives distance 0 afterwards, as long as its features are computed the same way
    (the same autocast, and batch norm in eval mode).

    A class without images keeps its prototypes and warns (the original would set them to zero).

    Args:
        model: any prototype model; where its `prototype_class` is None, every image is allowed.
        batches: un-augmented images with labels and positions, such as `protofast.data.Batches`. Where
            torch.distributed is initialised, each rank passes its own share and all get the same result.
        progress: called with the number of images done, after each batch.

    Raises:
        DataError: an image gives features that are not finite; the model is left as it was.

    Warns:
        UserWarning: naming the classes that have no image.
    """
    with evaluating(model):
        prototypes = model.prototypes
        best = _Nearest.nothing(prototypes)
        for batch in scan(model, batches, progress):
            best.update(_nearest_in_batch(batch, model.prototype_class))
        best = _over_ranks(best)
        if int(best.not_finite) != _NO_IMAGE:
            raise_not_finite(int(best.not_finite))
        found = best.images != _NO_IMAGE  # [P]
        moved = (best.patches - prototypes).square().sum(1).sqrt()
        prototypes.copy_(best.patches)
        projection = Projection(
            torch.where(found, best.distances, torch.nan).cpu(),
            torch.where(found, best.images, -1).cpu(),
            best.locations.cpu(),
            moved.to(torch.float32).cpu(),
            _empty_classes(model, found),
        )
    if projection.empty_classes:
        warnings.warn(_empty_message(projection), UserWarning, stacklevel=2)
    return projection


def _nearest_in_batch(batch: Scanned, prototype_class: Tensor | None) -> _Nearest:
    """The best patch of each prototype within one batch, earliest image first."""
    features, distances, index = batch.features, batch.output.distances, batch.index
    allowed = torch.ones_like(distances, dtype=torch.bool)  # [N, P]
    if prototype_class is not None:
        allowed = batch.labels.unsqueeze(1) == prototype_class
    distances = torch.where(allowed, distances, torch.inf).to(torch.float64)
    least = distances.amin(dim=0)  # [P]
    images = torch.where(allowed & (distances == least), index.unsqueeze(1), _NO_IMAGE)  # [N, P]
    earliest, rows = images.min(dim=0)  # [P]
    locations = batch.output.locations.gather(0, rows.unsqueeze(0))[0]  # [P]
    patches = features.flatten(2)[rows, :, locations].to(torch.float64)  # [P, D]
    finite = features.flatten(1).isfinite().all(dim=1)  # [N]
    not_finite = torch.where(finite, _NO_IMAGE, index).amin()
    return _Nearest(least, earliest, locations, patches, not_finite)


def _over_ranks(best: _Nearest) -> _Nearest:
    """One exchange: everything as rows of float64, which holds float32, positions and patches exactly."""
    keys = (best.distances, _to_float(best.images), best.locations.to(torch.float64))
    rows = torch.cat([torch.stack(keys, dim=1), best.patches], dim=1)  # [P, 3 + D]
    last = rows.new_zeros(1, rows.shape[1])
    last[0, 0] = _to_float(best.not_finite)
    everyone = gather_ranks(torch.cat([rows, last]))  # [world, P + 1, 3 + D]
    result: _Nearest | None = None
    for rank in everyone:
        theirs = _Nearest(
            rank[:-1, 0],
            _from_float(rank[:-1, 1]),
            rank[:-1, 2].to(torch.int64),
            rank[:-1, 3:],
            _from_float(rank[-1, 0]),
        )
        if result is None:
            result = theirs
        else:
            result.update(theirs)
    assert result is not None
    return result


def _to_float(images: Tensor) -> Tensor:
    return torch.where(images == _NO_IMAGE, torch.inf, images.to(torch.float64))


def _from_float(images: Tensor) -> Tensor:
    known = images.isfinite()
    return torch.where(known, torch.where(known, images, 0).to(torch.int64), _NO_IMAGE)


def _empty_classes(model: PrototypeModel, found: Tensor) -> tuple[int, ...]:
    if model.prototype_class is None:
        return ()
    return tuple(model.prototype_class[~found].unique().tolist())


def _empty_message(projection: Projection) -> str:
    count = int((projection.images < 0).sum())
    names = ", ".join(str(label) for label in projection.empty_classes)
    return (
        f"no image of class {names} in the set to project on: {count} prototype(s) stay as they are"
    )
