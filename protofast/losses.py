"""The terms of ProtoPNet's loss (Chen et al. 2019, section 2.2), on tensors alone.

N images, C classes, P prototypes. Each term is a scalar; weighting them is the caller's part (the
paper: 1 for cross entropy, 0.8 for cluster, -0.08 for separation, 1e-4 for L1). Also the alignment
loss of Sacha et al. 2024 (2308.08162).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_NO_LABEL = torch.iinfo(torch.int64).min  # what cross_entropy is to ignore: no label at all


def classification_loss(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Cross entropy, averaged over the images (by weight, if classes have weights).

    No label stands for "ignore this image", as -100 does in PyTorch's: it is one that does not fit.

    Args:
        logits: [N, C].
        labels: int64 [N] in [0, C).
        class_weights: positive numbers [C] of any dtype, or None for equal weights.

    Returns:
        The mean, 0 if there are no images.

    Raises:
        TypeError, ValueError: labels are not int64, not [N], or name a class that does not exist;
            class_weights do not fit or are not positive. (Values are looked at on the CPU alone.)
    """
    _check_labels(labels, logits.shape[0], logits.shape[1])
    if class_weights is not None:
        _check_class_weights(class_weights, logits.shape[1])
        class_weights = class_weights.to(logits.dtype)
    if logits.shape[0] == 0:
        return logits.sum()
    return F.cross_entropy(logits, labels, weight=class_weights, ignore_index=_NO_LABEL)


def cluster_loss(distances: Tensor, labels: Tensor, prototype_class: Tensor) -> Tensor:
    """Mean distance of each image to the nearest prototype of its own class; to be made small.

    A true minimum over the own-class prototypes. The released code of ProtoPNet takes
    `max_dist - max((max_dist - d) * own)` with max_dist = D instead: the same as long as some own
    d is below D, and stuck at D without any gradient otherwise.

    An image whose class has no prototype (after pruning) does not count.

    Args:
        distances: [N, P].
        labels: int64 [N].
        prototype_class: int64 [P].

    Returns:
        The mean over the images that count, 0 if none does.

    Raises:
        TypeError, ValueError: shapes or dtypes do not fit.
    """
    own = _own_class(distances, labels, prototype_class)
    return _mean_of_least(distances, own)


def separation_loss(distances: Tensor, labels: Tensor, prototype_class: Tensor) -> Tensor:
    """Mean distance of each image to the nearest prototype of any other class; to be made large.

    A true masked minimum, not the `max_dist` trick of the released code (see `cluster_loss`), which
    is the same whenever some other-class d is below max_dist. An image to whose class all
    prototypes belong does not count.

    Arguments, result and errors as for `cluster_loss`. The paper's weight is -0.08.
    """
    own = _own_class(distances, labels, prototype_class)
    return _mean_of_least(distances, ~own)


def last_layer_l1(weight: Tensor, prototype_class: Tensor) -> Tensor:
    """Sum of the absolute weights that connect prototypes to classes other than their own.

    Args:
        weight: of the last layer, [C, P].
        prototype_class: int64 [P].

    Raises:
        ValueError: shapes do not fit.
    """
    if prototype_class.shape != weight.shape[1:]:
        raise ValueError(
            f"weight must be [C, P] and prototype_class [P]; got {list(weight.shape)} and "
            f"{list(prototype_class.shape)}"
        )
    classes = torch.arange(weight.shape[0], device=weight.device)
    off_class = classes.unsqueeze(1) != prototype_class  # [C, P]
    return torch.where(off_class, weight.abs(), 0).sum()  # not a product: inf * 0 is NaN


def alignment_loss(
    first: Tensor, second: Tensor, *, difference: str = "l2", weights: Tensor | None = None
) -> Tensor:
    """How much similarity maps change when all but their highest part of the image is covered.

    Sacha et al. 2024 (2308.08162) write the norm of the difference. This is its mean
    square, which does not depend on how many maps a batch has. The released code takes the mean of
    the absolute (ProtoPNet) or squared (the others) difference, weighted by the mask.

    Args:
        first: maps of the whole images, [..., H, W]; detach them if they are the target alone, as
            in the released code.
        second: maps of the covered images, of the same shape.
        difference: `l2` (squared) or `l1` (absolute).
        weights: how much each cell counts, of the same shape and not negative; None for equally.
            The mean is over the whole batch, so images with larger masks weigh more.

    Returns:
        The mean, 0 where nothing counts.

    Raises:
        ValueError: shapes differ, or `difference` is unknown.
    """
    if first.shape != second.shape or (weights is not None and weights.shape != first.shape):
        got = [list(tensor.shape) for tensor in (first, second, weights) if tensor is not None]
        raise ValueError(f"first, second and weights must have the same shape; got {got}")
    if difference not in ("l2", "l1"):
        raise ValueError(f"difference must be 'l2' or 'l1'; got {difference!r}")
    change = (first - second).square() if difference == "l2" else (first - second).abs()
    if weights is None:
        return change.sum() / max(change.numel(), 1)
    total = weights.sum()
    return (change * weights).sum() / torch.where(total > 0, total, 1)


def _own_class(distances: Tensor, labels: Tensor, prototype_class: Tensor) -> Tensor:
    """Whether prototype p belongs to the class of image n: bool [N, P]."""
    if distances.dim() != 2 or prototype_class.shape != distances.shape[1:]:
        raise ValueError(
            f"distances must be [N, P] and prototype_class [P]; got {list(distances.shape)} and "
            f"{list(prototype_class.shape)}"
        )
    _check_labels(labels, distances.shape[0])
    return labels.unsqueeze(1) == prototype_class


def _mean_of_least(distances: Tensor, counts: Tensor) -> Tensor:
    """Least distance of each image among those that count, averaged; [N, P] each -> []."""
    if distances.shape[1] == 0:
        return distances.sum()
    masked = torch.where(counts, distances, torch.inf)
    least = masked.min(dim=1).values  # [N]; amin would share the gradient between ties
    valid = counts.any(dim=1)
    return torch.where(valid, least, 0).sum() / valid.sum().clamp(min=1)


def _check_class_weights(class_weights: Tensor, classes: int) -> None:
    if class_weights.shape != (classes,):
        raise ValueError(
            f"class_weights must have one number for each of the {classes} classes; got shape "
            f"{list(class_weights.shape)}"
        )
    if _may_look_at(class_weights) and not bool(
        (class_weights.isfinite() & (class_weights > 0)).all()
    ):
        raise ValueError(f"class_weights must be positive numbers; got {class_weights.tolist()}")


def _may_look_at(values: Tensor) -> bool:
    """Whether looking at values does not wait for a GPU nor break a compiled graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_labels(labels: Tensor, images: int, classes: int | None = None) -> None:
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64; got {labels.dtype}")
    if labels.shape != (images,):
        raise ValueError(
            f"labels must have one class for each of the {images} images; got shape "
            f"{list(labels.shape)}"
        )
    if classes is None or not _may_look_at(labels):
        return
    if images and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels must lie in 0...{classes - 1}; got {int(labels.min())}...{int(labels.max())}"
        )
