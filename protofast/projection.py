"""Projection ("push"): every prototype becomes the nearest patch of an image of its own class."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from protofast.errors import DataError
from protofast.models.protocol import PrototypeModel
from protofast.scan import (
    NO_IMAGE,
    LabelledImages,
    Scanned,
    evaluating,
    first_not_finite,
    gather_ranks,
    raise_if_not_finite,
    scan,
)


@dataclass(frozen=True)
class Projection:
    """Where each prototype came from; tensors [P] on the CPU.

    distances: float64, from the prototype as it was to its nearest patch, in the model's metric;
        NaN where the class has no image.
    images: int64, position of the source image in its set; -1 where the class has no image.
    locations: int64, the patch in the latent map, row-major; -1 likewise.
    moved: float64, Euclidean length of the prototype's jump; 0 where it stayed.
    empty_classes: the classes that have prototypes and no image.
    """

    distances: Tensor
    images: Tensor
    locations: Tensor
    moved: Tensor
    empty_classes: tuple[int, ...]


def project_prototypes(
    model: PrototypeModel,
    batches: Iterable[LabelledImages],
    *,
    progress: Callable[[int], None] | None = None,
) -> Projection:
    """Replace every prototype by the nearest patch among the images of its class ("push").

    Chen et al. 2019, section 2.2. The scan runs in eval mode without gradients, batched on the
    model's device; nothing is written before it is complete. Equal distances go to the image that
    comes first in its set and to the first location in row-major order, so that, given equal
    features, the result depends neither on the batches' size and order nor on the number of ranks.
    Several prototypes may take the same patch.

    The patch is copied bit by bit: afterwards its image gives distance exactly 0 with `squared_l2`
    and `l2`, as long as its features are computed in the same way (batch norm in eval mode, and the
    same autocast, if any). With `dot` the distance to the patch itself is minus the sum of its
    squares, with `cosine` -1 up to rounding.

    A class without images keeps its prototypes (the original code sets them to zero) and warns.

    Args:
        model: any prototype model; where its `prototype_class` is None, every image is allowed.
        batches: un-augmented images with labels and positions, such as `protofast.data.Batches`.
            Where torch.distributed is initialised, each rank passes its own share of the images,
            and all ranks get the same prototypes and the same result.
        progress: called after each batch with the number of images done.

    Raises:
        DataError: an image gives features that are not finite, or there are no images and
            `prototype_class` is None; the model is left as it was.

    Warns:
        UserWarning: naming the classes that have no image.
    """
    with evaluating(model):
        prototypes = model.prototypes
        classes = None if model.prototype_class is None else model.prototype_class.cpu()
        best = _Nearest.nothing(prototypes)
        for batch in scan(model, batches, progress):
            chosen = None if classes is None else batch.prototypes_of_its_classes(classes)
            best.update(_nearest_in_batch(batch, model.prototype_class, chosen), chosen)
        best = _over_ranks(best)
        raise_if_not_finite(best.not_finite, batches)
        found = best.images != NO_IMAGE  # [P]
        if classes is None and not bool(found.any()):
            raise DataError("there are no images to project the prototypes on")
        patches = torch.where(found.unsqueeze(1), best.patches, prototypes.to(torch.float64))
        moved = (patches - prototypes).square().sum(dim=1).sqrt()
        prototypes.copy_(patches)
        projection = Projection(
            torch.where(found, best.distances, torch.nan).cpu(),
            torch.where(found, best.images, -1).cpu(),
            torch.where(found, best.locations, -1).cpu(),
            moved.cpu(),
            _classes_of(model, ~found),
        )
    if projection.empty_classes:
        names = ", ".join(str(label) for label in projection.empty_classes)
        warnings.warn(
            f"the set to project on has no image of class {names}: their {int((~found).sum())} "
            "prototype(s) stay as they are",
            UserWarning,
            stacklevel=2,
        )
    return projection


@dataclass
class _Nearest:
    """The best patch of each prototype so far, on the model's device.

    Distances and patches are float64, which holds every other dtype's values exactly.
    """

    distances: Tensor  # [P], infinite for none
    images: Tensor  # [P] int64, NO_IMAGE for none
    locations: Tensor  # [P] int64
    patches: Tensor  # [P, D]
    not_finite: Tensor  # [] int64, the first image whose features are not finite, or NO_IMAGE

    @staticmethod
    def nothing(prototypes: Tensor) -> "_Nearest":
        count, depth = prototypes.shape
        images = torch.full((count,), NO_IMAGE, device=prototypes.device)
        return _Nearest(
            prototypes.new_full((count,), torch.inf, dtype=torch.float64),
            images,
            torch.full_like(images, -1),
            prototypes.new_zeros((count, depth), dtype=torch.float64),
            images.new_full((), NO_IMAGE),
        )

    def update(self, other: "_Nearest", chosen: Tensor | None = None) -> None:
        """Take over what `other` has nearer; equal distances go to the earlier image.

        `other` is of the prototypes `chosen` (int64 [K], distinct; None: of all).
        """
        self.not_finite = torch.minimum(self.not_finite, other.not_finite)
        if chosen is None:
            chosen = torch.arange(len(self.images), device=self.images.device)
        distances, images = self.distances[chosen], self.images[chosen]  # [K]
        earlier = (other.distances == distances) & (other.images < images)
        better = (other.distances < distances) | earlier
        self.distances[chosen] = torch.where(better, other.distances, distances)
        self.images[chosen] = torch.where(better, other.images, images)
        locations, patches = self.locations[chosen], self.patches[chosen]
        self.locations[chosen] = torch.where(better, other.locations, locations)
        self.patches[chosen] = torch.where(better.unsqueeze(1), other.patches, patches)


def _nearest_in_batch(
    batch: Scanned, prototype_class: Tensor | None, chosen: Tensor | None
) -> _Nearest:
    """The best patch of each chosen prototype within one batch; the earliest image wins ties."""
    found = batch.model.nearest_patch(batch.features, chosen)
    distances = found.distances.to(torch.float64)  # [N, K]
    allowed = torch.ones_like(distances, dtype=torch.bool)
    if prototype_class is not None:
        allowed = batch.labels.unsqueeze(1) == prototype_class[chosen]
    distances = torch.where(allowed, distances, torch.inf)
    least = distances.amin(dim=0)  # [K]
    images = torch.where(
        allowed & (distances == least), batch.index.unsqueeze(1), NO_IMAGE
    )  # [N, K]
    earliest, rows = images.min(dim=0)  # [K]
    locations = found.locations.gather(0, rows.unsqueeze(0))[0]  # [K]
    patches = batch.features.flatten(2)[rows, :, locations]  # [K, D]
    not_finite = first_not_finite(batch, found.distances)
    return _Nearest(least, earliest, locations, patches.to(torch.float64), not_finite)


def _over_ranks(best: _Nearest) -> _Nearest:
    """The best over all ranks, in one exchange of rows (distance, image, location, patch)."""
    keys = (best.distances, _as_float(best.images), best.locations.to(torch.float64))
    rows = torch.cat([torch.stack(keys, dim=1), best.patches], dim=1)  # [P, 3 + D]
    bad = _as_float(best.not_finite).expand(1, rows.shape[1])
    everyone = gather_ranks(torch.cat([rows, bad]))  # [world, P + 1, 3 + D]
    overall = _from_rows(everyone[0])
    for others in everyone[1:]:
        overall.update(_from_rows(others))
    return overall


def _from_rows(rows: Tensor) -> _Nearest:
    return _Nearest(
        rows[:-1, 0],
        _as_position(rows[:-1, 1]),
        rows[:-1, 2].to(torch.int64),
        rows[:-1, 3:],
        _as_position(rows[-1, 0]),
    )


def _as_float(images: Tensor) -> Tensor:
    return torch.where(images == NO_IMAGE, torch.inf, images.to(torch.float64))


def _as_position(images: Tensor) -> Tensor:
    known = images.isfinite()
    return torch.where(known, torch.where(known, images, 0).to(torch.int64), NO_IMAGE)


def _classes_of(model: PrototypeModel, chosen: Tensor) -> tuple[int, ...]:
    if model.prototype_class is None:
        return ()
    return tuple(model.prototype_class[chosen].unique().tolist())
