"""`nearest_patches`: the k nearest patches of every prototype in every image."""

from typing import Any

import torch
from torch import Tensor

from protofast.ops import _library, reference
from protofast.ops.arguments import check_count, check_similarity, check_tensors, compute_dtype
from protofast.ops.nearest_patch import NearestPatch
from protofast.ops.windows import flatten_windows


def nearest_patches(
    features: Tensor,
    prototypes: Tensor,
    k: int,
    *,
    metric: str = "squared_l2",
    similarity: str = "log",
    eps: float = 1e-4,
) -> NearestPatch:
    """Find, for every image and prototype, the k nearest patches, nearest first.

    As `nearest_patch`, whose result is the first of the k: distances are direct differences, and
    gradients flow through the k locations alone.

    Args:
        features: [N, D, H, W], as for `nearest_patch`.
        prototypes: [P, D] or [P, D, h, w].
        k: how many, from 1 to 8 and no more than there are locations.
        metric: as for `nearest_patch`.
        similarity: as for `nearest_patch`.
        eps: as for `nearest_patch`.

    Returns:
        NearestPatch(activations, distances, locations), each [N, P, k], with the dtypes of
        `nearest_patch`. Equal distances go by location; a patch with NaN comes before all others.

    Raises:
        TypeError: an argument is no tensor or not floating point, or k is no int.
        ValueError: shapes, devices, options or k do not fit.

    Example:
        >>> features = torch.tensor([[[[0.0, 3.0, 5.0]]]])  # N=1, D=1, H=1, W=3
        >>> nearest_patches(features, torch.tensor([[2.0]]), 2).locations
        tensor([[[1, 0]]])
    """
    _check(features, prototypes, k, metric, similarity, eps)
    features, prototypes = flatten_windows(features, prototypes)
    return NearestPatch(
        *torch.ops.protofast.nearest_patches(features, prototypes, k, metric, similarity, eps)
    )


def _check(
    features: Tensor, prototypes: Tensor, k: int, metric: str, similarity: str, eps: float
) -> None:
    check_tensors(features, prototypes)
    check_count(features, prototypes, k)
    check_similarity(metric, similarity, eps)


def _reference(
    features: Tensor, prototypes: Tensor, k: int, metric: str, similarity: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    _check(features, prototypes, k, metric, similarity, eps)
    return reference.nearest_patches(features, prototypes, k, metric, similarity, eps)


def _fake(
    features: Tensor, prototypes: Tensor, k: int, metric: str, similarity: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    _check(features, prototypes, k, metric, similarity, eps)
    shape = (features.shape[0], prototypes.shape[0], k)
    dtype = compute_dtype(features, prototypes)
    activations = features.new_empty(shape, dtype=dtype)
    return activations, torch.empty_like(activations), features.new_empty(shape, dtype=torch.int64)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, prototypes, k, metric, similarity, eps = inputs
    _, distances, locations = output
    ctx.save_for_backward(features, prototypes, distances, locations)
    ctx.k = k
    ctx.options = (metric, similarity, eps)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_activations: Tensor | None, grad_distances: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    """That of `nearest_patch`, with every prototype k times: its ranks are pairs of their own."""
    need_features, need_prototypes = ctx.needs_input_grad[:2]
    if grad_activations is None and grad_distances is None:
        return (None,) * 6
    features, prototypes, distances, locations = ctx.saved_tensors
    # In the dtype of the computation, so that sums over the ranks are rounded once.
    repeated = prototypes.to(distances.dtype).repeat_interleave(ctx.k, 0)  # [P * k, D (, h, w)]
    grad_features, grad_repeated = torch.ops.protofast.nearest_patch_backward(
        None if grad_activations is None else grad_activations.flatten(1),
        None if grad_distances is None else grad_distances.flatten(1),
        features,
        repeated,
        distances.flatten(1),
        locations.flatten(1),
        *ctx.options,
        need_features,
        need_prototypes,
    )
    grad_prototypes = None
    if need_prototypes:
        ranks = grad_repeated.unflatten(0, (prototypes.shape[0], ctx.k))
        grad_prototypes = ranks.sum(1).to(prototypes.dtype)
    return (grad_features if need_features else None, grad_prototypes, *(None,) * 4)


_library.declare(
    "nearest_patches(Tensor features, Tensor prototypes, int k, str metric, str similarity, "
    "float eps) -> (Tensor activations, Tensor distances, Tensor locations)",
    _reference,
    _fake,
)
_library.differentiate("nearest_patches", _backward, _setup_context)
