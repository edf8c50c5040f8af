"""What is checked before an attack begins."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_options(
    epsilon: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    random_start: bool | str,
    bounds: tuple[float, float] | None,
    norm: str,
    restarts: int,
    keep: str,
    evaluate: bool,
) -> None:
    """Raise ValueError for an option of `pgd` that cannot be meant; see there."""
    for name, extent in (("epsilon", epsilon), ("step_size", step_size)):
        allowed = (
            bool(((extent >= 0) & extent.isfinite()).all())
            if isinstance(extent, Tensor)
            else extent >= 0 and math.isfinite(extent)
        )
        if not allowed:
            raise ValueError(f"{name} must be finite and not negative; got {extent}")
    if steps < 0 or restarts < 1:
        raise ValueError(
            f"steps must be at least 0 and restarts at least 1; got {steps} and {restarts}"
        )
    if random_start not in (True, False, "unmasked"):
        raise ValueError(f'random_start must be True, False or "unmasked"; got {random_start!r}')
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be (least, largest) or None; got {bounds}")
    for name, value, choices in (("norm", norm, ("linf", "l2")), ("keep", keep, ("last", "best"))):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    if not evaluate and (keep == "best" or restarts > 1):
        raise ValueError(
            "evaluate=False needs keep='last' and restarts=1: which iterate is the best is not "
            "known without looking at the last one"
        )


def check_tensors(
    images: Tensor,
    epsilon: float | Tensor,
    step_size: float | Tensor,
    image_ids: Tensor,
    norm: str,
) -> None:
    """Raise TypeError or ValueError for tensors whose dtype or shape does not fit the images."""
    if not images.is_floating_point() or images.dim() != 4:
        raise TypeError(
            "images must be floating point [N, channels, S, T]; got "
            f"{images.dtype} {list(images.shape)}"
        )
    if image_ids.dtype != torch.int64 or image_ids.shape != images.shape[:1]:
        raise TypeError(
            f"image_ids must be int64 [{images.shape[0]}], one for each image; got "
            f"{image_ids.dtype} {list(image_ids.shape)}"
        )
    allowed = tuple(images.shape) if norm == "linf" else (images.shape[0], 1, 1, 1)
    for name, extent in (("epsilon", epsilon), ("step_size", step_size)):
        if isinstance(extent, Tensor) and not _broadcasts(extent, allowed):
            raise ValueError(
                f"{name} must be a number or a tensor that broadcasts to {list(allowed)}; got "
                f"{list(extent.shape)}"
            )


def as_mask(mask: Tensor | None, images: Tensor) -> Tensor | None:
    """The mask as bool [N or 1, 1 or channels, S, T] on the images' device.

    Raises:
        ValueError: It does not broadcast to the images, or holds something else than 0 and 1.
    """
    if mask is None:
        return None
    if not _broadcasts(mask, tuple(images.shape)):
        raise ValueError(
            f"mask must broadcast to the images {list(images.shape)}; got {list(mask.shape)}"
        )
    mask = mask.detach().to(images.device)
    chosen = mask if mask.dtype == torch.bool else mask != 0
    if mask.dtype != torch.bool and not bool((mask == chosen).all()):
        raise ValueError("mask must be bool, or hold nothing but 0 and 1")
    shape = [1] * (4 - chosen.dim()) + list(chosen.shape)
    return chosen.view(shape).expand(len(images), *shape[1:])


def _broadcasts(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor broadcasts to just this shape."""
    try:
        together: tuple[int, ...] = torch.broadcast_shapes(tensor.shape, shape)
    except RuntimeError:
        return False
    return together == shape
