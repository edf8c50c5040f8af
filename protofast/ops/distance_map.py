"""`distance_map` and what is built on it: `similarity_map` and `mean_distance`."""

from typing import Any

import torch
from torch import Tensor

from protofast.ops import _library, reference
from protofast.ops.arguments import (
    METRICS,
    check_index,
    check_option,
    check_range,
    check_similarity,
    check_tensors,
    compute_dtype,
    grid_of,
)
from protofast.ops.windows import flatten_windows


def distance_map(
    features: Tensor,
    prototypes: Tensor,
    *,
    index: Tensor | None = None,
    metric: str = "squared_l2",
) -> Tensor:
    """Distance of chosen prototypes to every patch, each a direct difference.

    Args:
        features: [N, D, H, W].
        prototypes: [P, D] or [P, D, h, w].
        index: prototypes chosen for each image, int64 [N, K] in [0, P); None takes all P.
        metric: as for `nearest_patch`.

    Returns:
        [N, K, H, W] (K = P without `index`; H-h+1 and W-w+1 for prototypes of h x w patches),
        float64 if an input is float64, else float32.

    Raises:
        TypeError, ValueError: as `nearest_patch`.
        IndexError: `index` names a prototype that does not exist.
    """
    _check(features, prototypes, index, metric)
    if type(index) is Tensor and not torch.compiler.is_compiling():  # no fake or traced tensor
        check_range("index", index, prototypes.shape[0])
    features, prototypes = flatten_windows(features, prototypes)
    distances: Tensor = torch.ops.protofast.distance_map(features, prototypes, index, metric)
    return distances


def similarity_map(
    features: Tensor,
    prototypes: Tensor,
    *,
    index: Tensor | None = None,
    metric: str = "squared_l2",
    similarity: str = "log",
    eps: float = 1e-4,
) -> Tensor:
    """Similarity of chosen prototypes to every patch: `distance_map`, then the similarity.

    Exact near distance 0 and differentiable. Arguments as for `distance_map` and `nearest_patch`.

    Returns:
        [N, K, H, W]; its maximum over H, W is, to rounding, the activation of `nearest_patch`.
    """
    check_similarity(metric, similarity, eps)
    distances = distance_map(features, prototypes, index=index, metric=metric)
    return reference.similarity(distances, similarity, eps)


def mean_distance(features: Tensor, prototypes: Tensor) -> Tensor:
    """Mean over all patches of the squared L2 distance, without the map (ProtoPool's focal term).

    By algebra, mean_l |z_l - p|^2 = |mean z - p|^2 + mean_l |z_l - mean z|^2: exact where every
    patch equals the prototype, and never negative.

    Args:
        features: [N, D, H, W].
        prototypes: [P, D] or [P, D, h, w].

    Returns:
        [N, P], float64 if an input is float64, else float32.
    """
    _check(features, prototypes, None, "squared_l2")
    features = features.to(compute_dtype(features, prototypes))
    height, width = prototypes.shape[2:] or (1, 1)
    rows, columns = grid_of(features, prototypes)
    centres, spreads = [], []
    for i in range(height):
        for j in range(width):  # patch (i, j) of all windows
            patches = features[:, :, i : i + rows, j : j + columns]
            first = patches[:, :, :1, :1]  # what the mean is taken from keeps that of equals exact
            centre = first + (patches - first).mean(dim=(2, 3), keepdim=True)  # [N, D, 1, 1]
            centres.append(centre)
            spreads.append((patches - centre).square().sum(dim=1).mean(dim=(1, 2)))  # [N]
    centre = torch.cat(centres, dim=2).view(*features.shape[:2], height, width)
    spread = torch.stack(spreads).sum(dim=0)  # [N]
    return distance_map(centre, prototypes).flatten(1) + spread.unsqueeze(1)


def _check(features: Tensor, prototypes: Tensor, index: Tensor | None, metric: str) -> None:
    check_tensors(features, prototypes)
    check_option("metric", metric, METRICS)
    check_index(features, index)


def _reference(features: Tensor, prototypes: Tensor, index: Tensor | None, metric: str) -> Tensor:
    _check(features, prototypes, index, metric)
    return reference.distance_map(features, prototypes, index, metric)


def _fake(features: Tensor, prototypes: Tensor, index: Tensor | None, metric: str) -> Tensor:
    _check(features, prototypes, index, metric)
    count = prototypes.shape[0] if index is None else index.shape[1]
    shape = (features.shape[0], count, *grid_of(features, prototypes))
    return features.new_empty(shape, dtype=compute_dtype(features, prototypes))


def _fake_backward(
    grad: Tensor, features: Tensor, prototypes: Tensor, index: Tensor | None, metric: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(features), prototypes.new_empty(prototypes.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, prototypes, index, metric = inputs
    ctx.save_for_backward(features, prototypes, index)
    ctx.metric = metric


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_features, grad_prototypes = torch.ops.protofast.distance_map_backward(
        grad, *ctx.saved_tensors, ctx.metric
    )
    need_features, need_prototypes = ctx.needs_input_grad[:2]
    return (
        grad_features if need_features else None,
        grad_prototypes if need_prototypes else None,
        None,
        None,
    )


_library.declare(
    "distance_map(Tensor features, Tensor prototypes, Tensor? index, str metric) -> Tensor",
    _reference,
    _fake,
)
_library.declare(
    "distance_map_backward(Tensor grad, Tensor features, Tensor prototypes, Tensor? index, "
    "str metric) -> (Tensor grad_features, Tensor grad_prototypes)",
    reference.distance_map_backward,
    _fake_backward,
)
_library.differentiate("distance_map", _backward, _setup_context)
_library.refuse_second_derivative("distance_map_backward", "distance_map")
