"""The images nearest to each prototype, and pruning of prototypes that fit other classes."""

import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from protofast.errors import SettingsError
from protofast.models.protocol import PrototypeModel
from protofast.ops.nearest_patch_within import NearPairs, pairs_within
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


class NearestImages(NamedTuple):
    """The k nearest images of each prototype, nearest first; tensors [P, k] on the CPU.

    distances: to the image's nearest patch, in the model's metric, float64.
    images: int64, position in the set.
    labels: int64, class of the image.
    locations: int64, that patch in the latent map, row-major.

    Where there are fewer than k images: distance NaN, and -1 for the others.
    """

    distances: Tensor
    images: Tensor
    labels: Tensor
    locations: Tensor


class Pruning(NamedTuple):
    """What pruning did; prototypes are numbered as they were before.

    keep: int64 [K], the prototypes that stay, ascending.
    removed: int64 [P - K], the others.
    own_class_counts: int64 [P], how many of the k nearest images have the prototype's class.
    nearest: those images.
    empty_classes: the classes that have lost all their prototypes.
    """

    keep: Tensor
    removed: Tensor
    own_class_counts: Tensor
    nearest: NearestImages
    empty_classes: tuple[int, ...]


def nearest_images(
    model: PrototypeModel,
    batches: Iterable[LabelledImages],
    *,
    k: int,
    own_class_only: bool = False,
    progress: Callable[[int], None] | None = None,
) -> NearestImages:
    """Find the k images nearest to each prototype; each image counts once, by its nearest patch.

    Equal distances go to the image that comes first in its set. The result depends neither on the
    batches' size and order nor on the number of ranks, each of which passes its own share.

    Args:
        model: any prototype model.
        batches: un-augmented images with labels and positions, each image once.
        k: how many images for a prototype.
        own_class_only: only look at images of the prototype's own class.
        progress: called with the number of images done, after each batch.

    Raises:
        ValueError: k below 1, or `own_class_only` for a model whose prototypes have no class.
        DataError: an image gives features that are not finite.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    classes = model.prototype_class if own_class_only else None
    if own_class_only and classes is None:
        raise ValueError("own_class_only needs prototypes that belong to classes; these have none")
    with evaluating(model):
        device = model.prototypes.device
        nearest = _Nearest(model.num_prototypes, k, device)
        not_finite = torch.full((), NO_IMAGE, device=device)
        for batch in scan(model, batches, progress):
            near = _near_enough(batch, nearest, classes)
            nearest.offer(batch, near)
            not_finite = torch.minimum(not_finite, _first_not_finite(batch, near))
        raise_if_not_finite(gather_ranks(not_finite).amin(), batches)
        overall = _Nearest(model.num_prototypes, k, device)
        for table in gather_ranks(nearest.table()):
            overall.add(table)
    return _as_result(overall.table().cpu())


def prune_prototypes(
    model: PrototypeModel,
    batches: Iterable[LabelledImages],
    *,
    k: int = 6,
    threshold: int = 3,
    progress: Callable[[int], None] | None = None,
) -> Pruning:
    """Remove, in place, the prototypes whose nearest training images are mostly of other classes.

    Chen et al. 2019 and their code: a prototype goes if fewer than `threshold` of its `k` nearest
    images (each by its nearest patch) have its class. To be done after projection, and followed by
    a training of the last layer with a new optimiser.

    Args:
        model: a model whose prototypes belong to classes and that has `prune`.
        batches: as for `nearest_images`: the un-augmented training set.
        k: how many images to look at.
        threshold: how many of them must have the prototype's class.
        progress: called with the number of images done, after each batch.

    Raises:
        ValueError: `threshold` not in 1...k, or prototypes without classes.
        SettingsError: no prototype at all would be left; the model is left as it was.
        DataError: an image gives features that are not finite.

    Warns:
        UserWarning: naming the classes that lose all their prototypes.
    """
    if not 1 <= threshold <= k:
        raise ValueError(f"threshold must lie in 1...k = {k}; got {threshold}")
    if model.prototype_class is None:
        raise ValueError("pruning needs prototypes that belong to classes; these have none")
    nearest = nearest_images(model, batches, k=k, progress=progress)
    classes = model.prototype_class.cpu()
    counts = (nearest.labels == classes.unsqueeze(1)).sum(dim=1)  # [P]
    stays = counts >= threshold
    if not bool(stays.any()):
        raise SettingsError(
            f"pruning would remove all {len(stays)} prototypes: none has {threshold} images of its "
            f"class among its {k} nearest; lower the threshold, or project first"
        )
    empty = sorted(set(classes.tolist()) - set(classes[stays].tolist()))
    keep = stays.nonzero()[:, 0]
    model.prune(keep)
    if empty:
        names = ", ".join(str(label) for label in empty)
        warnings.warn(f"class {names} has lost all its prototypes", UserWarning, stacklevel=2)
    return Pruning(keep, (~stays).nonzero()[:, 0], counts, nearest, tuple(empty))


def _near_enough(batch: Scanned, nearest: "_Nearest", only: Tensor | None) -> NearPairs:
    """The images of a batch that may be among the nearest, and all that are not finite.

    Args:
        batch: one batch.
        nearest: those so far.
        only: int64 [P], the one class whose images each prototype may have; None: any.
    """
    if only is not None:
        chosen = (only.unsqueeze(1) == batch.labels).any(dim=1)  # [P]
        limits = torch.where(chosen, nearest.limits, -torch.inf)
        near = batch.model.nearest_patch_within(batch.features, limits)
        own = batch.labels[near.images] == only[near.prototypes]
        own |= ~near.distances.isfinite()
        return NearPairs(*(column[own] for column in near))
    if nearest.is_empty and len(batch.index) >= nearest.k:
        # Nearer than the k-th of this batch at least: else all of it would be noted.
        found = batch.model.nearest_patch(batch.features)
        bound = found.distances.topk(nearest.k, dim=0, largest=False).values[-1]
        return pairs_within(found, bound.to(torch.float64))
    return batch.model.nearest_patch_within(batch.features, nearest.limits)


class _Nearest:
    """The k nearest images of each prototype so far, as rows (distance, image, label, location).

    An image is noted for a prototype only if it is no farther than the k-th so far, which soon
    holds for few; the notes are sorted in when there are many. Rows are float64 on the model's
    device.

    Attributes:
        k: how many.
        is_empty: whether nothing has been offered yet.
        limits: float64 [P], how far an image may be to be noted; infinite before k are known.
    """

    def __init__(self, prototypes: int, k: int, device: torch.device) -> None:
        nothing = torch.tensor([torch.inf, -1, -1, -1], dtype=torch.float64, device=device)
        self.k = k
        self.is_empty = True
        self._table = nothing.view(4, 1, 1).repeat(1, prototypes, k)
        self.limits = self._table[0, :, -1].clone()
        self._notes: list[Tensor] = []  # each [5, M]: the prototypes, and columns of the table
        self._noted = 0
        self._enough = 0  # at first: the sooner there are limits, the better

    def offer(self, batch: Scanned, near: NearPairs) -> None:
        """Note what was found in one batch."""
        images, prototypes, distances, locations = near  # [M]
        columns = prototypes, distances, batch.index[images], batch.labels[images], locations
        self._note(torch.stack([column.to(torch.float64) for column in columns]))
        self.is_empty = False

    def add(self, table: Tensor) -> None:
        """Look at what was found elsewhere, [4, P, k]."""
        self._note(_numbered(table))

    def table(self) -> Tensor:
        """[4, P, k], nearest first, then by image; for images that lack, infinity and -1."""
        if self._notes:
            self._sort_in()
        return self._table

    def _note(self, notes: Tensor) -> None:
        self._notes.append(notes)
        self._noted += notes.shape[1]
        if self._noted > self._enough:
            self._sort_in()

    def _sort_in(self) -> None:
        _, count, k = self._table.shape
        columns = torch.cat([_numbered(self._table), *self._notes], dim=1)  # [5, M]
        self._notes, self._noted = [], 0
        order = torch.arange(columns.shape[1], device=columns.device)
        # By image, then stably by distance, then by prototype; integers are sorted faster.
        for row, dtype in ((2, torch.int64), (1, torch.float64), (0, torch.int64)):
            keys = columns[row].index_select(0, order).to(dtype)
            order = order.index_select(0, keys.argsort(stable=True))
        prototypes = columns[0].index_select(0, order).to(torch.int64)
        first = torch.searchsorted(prototypes, torch.arange(count, device=columns.device))
        # Of every prototype k rows at least, those of the table.
        best = order[first.unsqueeze(1) + torch.arange(k, device=columns.device)]  # [P, k]
        self._table = columns[1:, best]
        self.limits = self._table[0, :, -1].clone()
        self._enough = count * k


def _first_not_finite(batch: Scanned, near: NearPairs) -> Tensor:
    """Position [] of the first image with NaN or infinity in features or distances, or NO_IMAGE."""
    positions = batch.index[near.images]
    positions = torch.where(near.distances.isfinite(), NO_IMAGE, positions)
    none = positions.new_full((1,), NO_IMAGE)
    none_near = near.distances.new_empty((len(batch.index), 0))
    return torch.minimum(torch.cat([positions, none]).amin(), first_not_finite(batch, none_near))


def _numbered(table: Tensor) -> Tensor:
    """The columns of a table [4, P, k], below the number of the prototype: [5, P * k]."""
    _, count, k = table.shape
    prototypes = torch.arange(count, dtype=table.dtype, device=table.device)
    return torch.cat([prototypes.repeat_interleave(k).unsqueeze(0), table.flatten(1)])


def _as_result(table: Tensor) -> NearestImages:
    known = table[0].isfinite()
    distances = torch.where(known, table[0], torch.nan)
    images, labels, locations = (
        torch.where(known, column, -1).to(torch.int64) for column in table[1:]
    )
    return NearestImages(distances, images, labels, locations)
