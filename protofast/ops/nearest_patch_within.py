"""`nearest_patch_within`: the pairs of an image and a prototype that are near enough to matter."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from protofast.ops import _library
from protofast.ops.arguments import METRICS, check_option, check_tensors, compute_dtype
from protofast.ops.nearest_patch import NearestPatch
from protofast.ops.windows import flatten_windows


class NearPairs(NamedTuple):
    """Pairs of an image and a prototype; each [M], by image and then by prototype.

    images: int64, position in the batch.
    prototypes: int64.
    distances: to the image's nearest patch, as `nearest_patch` gives them.
    locations: int64, of that patch, row-major.
    """

    images: Tensor
    prototypes: Tensor
    distances: Tensor
    locations: Tensor


def nearest_patch_within(
    features: Tensor, prototypes: Tensor, limits: Tensor, *, metric: str = "squared_l2"
) -> NearPairs:
    """Find the nearest patch of those images and prototypes whose distance is within a limit.

    What a search for the nearest images needs once it knows a few: distances and locations are
    those of `nearest_patch`, and pairs farther apart than the prototype's limit are left out. On
    processors with AVX-512 VNNI a first look in 8-bit integers, with a bound on its error, finds
    most of these several times faster than they can be computed (docs/kernels.md), by `squared_l2`
    and `l2`. Not differentiable.

    Args:
        features: [N, D, H, W], as for `nearest_patch`.
        prototypes: [P, D] or [P, D, h, w].
        limits: float64 [P], in the metric's own unit; infinity takes every image, NaN none.
        metric: as for `nearest_patch`.

    Returns:
        NearPairs(images, prototypes, distances, locations), each [M]: the pairs with a distance of
        at most the prototype's limit, and all with one that is not finite.

    Raises:
        TypeError: features or prototypes as for `nearest_patch`; limits are not float64.
        ValueError: shapes, devices or the metric do not fit.

    Example:
        >>> features = torch.tensor([[[[0.0, 3.0]]], [[[8.0, 9.0]]]])  # N=2, D=1, H=1, W=2
        >>> limits = torch.tensor([4.0, 100.0], dtype=torch.float64)
        >>> found = nearest_patch_within(features, torch.tensor([[2.0], [4.0]]), limits)
        >>> found.images, found.prototypes, found.distances
        (tensor([0, 0, 1]), tensor([0, 1, 1]), tensor([ 1.,  1., 16.]))
    """
    _check(features, prototypes, limits, metric)
    features, prototypes = flatten_windows(features, prototypes)
    return NearPairs(
        *torch.ops.protofast.nearest_patch_within(features, prototypes, limits, metric)
    )


def pairs_within(found: NearestPatch, limits: Tensor) -> NearPairs:
    """The pairs that `nearest_patch_within` finds, from all that `nearest_patch` has found.

    Args:
        found: each [N, P].
        limits: float64 [P].
    """
    _, distances, locations = found
    near = (distances <= limits) | ~distances.isfinite()
    images, prototypes = near.nonzero(as_tuple=True)  # [M]
    return NearPairs(
        images, prototypes, distances[images, prototypes], locations[images, prototypes]
    )


def _check(features: Tensor, prototypes: Tensor, limits: Tensor, metric: str) -> None:
    check_tensors(features, prototypes)
    check_option("metric", metric, METRICS)
    if not isinstance(limits, Tensor) or limits.dtype != torch.float64:
        got = limits.dtype if isinstance(limits, Tensor) else type(limits).__name__
        raise TypeError(f"limits must be a float64 tensor; got {got}")
    if limits.dim() != 1 or limits.shape[0] != prototypes.shape[0]:
        raise ValueError(
            f"limits must be [P] with P = {prototypes.shape[0]}; got {list(limits.shape)}"
        )
    if limits.device != prototypes.device:
        raise ValueError(
            f"limits must be on the device of prototypes, {prototypes.device}; got {limits.device}"
        )


def _by_full_search(
    features: Tensor, prototypes: Tensor, limits: Tensor, metric: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where no kernel leaves pairs out: `nearest_patch`, by whatever kernel it has."""
    _check(features, prototypes, limits, metric)
    found = torch.ops.protofast.nearest_patch(
        features, prototypes, metric, "linear", 1e-4, "float32", "auto"
    )
    images, which, distances, locations = pairs_within(NearestPatch(*found), limits)
    return images, which, distances, locations


def _fake(
    features: Tensor, prototypes: Tensor, limits: Tensor, metric: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(features, prototypes, limits, metric)
    count = torch.library.get_ctx().new_dynamic_size()
    distances = features.new_empty(count, dtype=compute_dtype(features, prototypes))
    images, which, locations = (features.new_empty(count, dtype=torch.int64) for _ in range(3))
    return images, which, distances, locations


def _refuse_gradient(ctx: Any, *_: Any) -> None:
    raise RuntimeError("nearest_patch_within has no gradient; use nearest_patch")


def _no_context(ctx: Any, inputs: Any, output: Any) -> None:
    pass


_library.declare(
    "nearest_patch_within(Tensor features, Tensor prototypes, Tensor limits, str metric) -> "
    "(Tensor images, Tensor near_prototypes, Tensor distances, Tensor locations)",
    _by_full_search,
    _fake,
)
_library.differentiate("nearest_patch_within", _refuse_gradient, _no_context)
