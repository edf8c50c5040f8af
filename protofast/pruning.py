"""The images nearest to each prototype, and pruning of prototypes that fit other classes."""

import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from protofast.errors import SettingsError
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
    if own_class_only and model.prototype_class is None:
        raise ValueError("own_class_only needs prototypes that belong to classes; these have none")
    with evaluating(model):
        device = model.prototypes.device
        best = torch.zeros((model.num_prototypes, 0, 4), dtype=torch.float64, device=device)
        not_finite = torch.full((), NO_IMAGE, device=device)
        for batch in scan(model, batches, progress):
            candidates = _candidates(batch, model.prototype_class if own_class_only else None)
            best = _least(torch.cat([best, candidates], dim=1), k)
            not_finite = torch.minimum(not_finite, first_not_finite(batch))
        missing = k - best.shape[1]
        best = F.pad(best, (0, 0, 0, missing), value=torch.inf)
        raise_if_not_finite(gather_ranks(not_finite).amin())
        best = _least(torch.cat(list(gather_ranks(best)), dim=1), k)
    return _as_result(best.cpu())


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


def _candidates(batch: Scanned, prototype_class: Tensor | None) -> Tensor:
    """Rows (distance, image, label, location) of every prototype and image, [P, N, 4] float64.

    Images of other classes (if `prototype_class` is given) have infinity everywhere.
    """
    distances = batch.output.distances  # [N, P]
    rows = torch.stack(
        [
            distances.to(torch.float64),
            batch.index.unsqueeze(1).expand_as(distances).to(torch.float64),
            batch.labels.unsqueeze(1).expand_as(distances).to(torch.float64),
            batch.output.locations.to(torch.float64),
        ],
        dim=2,
    ).transpose(0, 1)  # [P, N, 4]
    if prototype_class is None:
        return rows
    own = prototype_class.unsqueeze(1) == batch.labels  # [P, N]
    return torch.where(own.unsqueeze(2), rows, torch.inf)


def _least(rows: Tensor, k: int) -> Tensor:
    """The k first rows of each prototype by (distance, image); [P, M, 4] -> [P, min(k, M), 4]."""
    for column in (1, 0):  # by the second key, then stably by the first
        order = rows[:, :, column].argsort(dim=1, stable=True)
        rows = rows.gather(1, order.unsqueeze(2).expand_as(rows))
    return rows[:, :k]


def _as_result(rows: Tensor) -> NearestImages:
    known = rows[:, :, 0].isfinite()
    distances = torch.where(known, rows[:, :, 0], torch.nan)
    images, labels, locations = (
        torch.where(known, rows[:, :, column], -1).to(torch.int64) for column in (1, 2, 3)
    )
    return NearestImages(distances, images, labels, locations)
