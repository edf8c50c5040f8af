"""The operators as plain PyTorch operations without loops or branches on sizes: for export."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import unfold

from protofast.ops import reference
from protofast.ops.arguments import compute_dtype, grid_of


def table() -> dict[Any, Callable[..., object]]:
    """Operators that a network's forward calls -> their decompositions."""
    operators = torch.ops.protofast
    return {
        operators.nearest_patch.default: nearest_patch,
        operators.nearest_patch_packed.default: _nearest_patch_packed,
        operators.nearest_patches.default: nearest_patches,
        operators.dot_and_cosine.default: dot_and_cosine,
        operators.distance_map.default: distance_map,
    }


def nearest_patch(
    features: Tensor,
    prototypes: Tensor,
    metric: str,
    similarity: str,
    eps: float,
    precision: str,
    refine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Selection by the expanded form, then the winner's distance as a direct difference."""
    del precision, refine  # how GPU kernels select: nothing is selected faster here
    patches, prototypes = _rows(features, prototypes)
    locations = _scores(patches, prototypes, metric).argmax(dim=1)  # [N, P]
    winners = patches.gather(1, locations.unsqueeze(2).expand(-1, -1, patches.shape[2]))
    distances = reference.pair_distance(winners, prototypes, metric)
    return reference.similarity(distances, similarity, eps), distances, locations


def _nearest_patch_packed(
    features: Tensor,
    prototypes: Tensor,
    packed: Tensor,
    metric: str,
    similarity: str,
    eps: float,
    precision: str,
    refine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    del packed  # of a frozen layer: prototypes in a layout of their own
    return nearest_patch(features, prototypes, metric, similarity, eps, precision, refine)


def nearest_patches(
    features: Tensor, prototypes: Tensor, k: int, metric: str, similarity: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Selection and order by the expanded form, then direct differences.

    Of distances that it cannot tell apart any may come first.
    """
    patches, prototypes = _rows(features, prototypes)
    scores = _scores(patches, prototypes, metric).transpose(1, 2)  # [N, P, L]
    locations = scores.topk(k).indices  # [N, P, k]
    where = locations.flatten(1).unsqueeze(2).expand(-1, -1, patches.shape[2])
    winners = patches.gather(1, where).unflatten(1, (prototypes.shape[0], k))  # [N, P, k, D]
    distances = reference.pair_distance(winners, prototypes.unsqueeze(1), metric)
    order = distances.neg().topk(k).indices
    distances, locations = distances.gather(2, order), locations.gather(2, order)
    return reference.similarity(distances, similarity, eps), distances, locations


def dot_and_cosine(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two searches one after the other."""
    options = ("linear", 1e-4, "float32", "auto")
    dots, _, dot_locations = nearest_patch(features, prototypes, "dot", *options)
    cosines, _, cosine_locations = nearest_patch(features, prototypes, "cosine", *options)
    return dots, dot_locations, cosines, cosine_locations


def distance_map(features: Tensor, prototypes: Tensor, index: Tensor | None, metric: str) -> Tensor:
    """Every distance as a direct difference, [N, K, H, W]."""
    patches, rows = _rows(features, prototypes)
    chosen = rows.unsqueeze(0) if index is None else rows[index]  # [N or 1, K, D]
    distances = reference.pair_distance(patches.unsqueeze(1), chosen.unsqueeze(2), metric)
    return distances.view(*distances.shape[:2], *grid_of(features, prototypes))


def _rows(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Patches [N, L, D] and prototypes [P, D] in the dtype of the computation.

    Prototypes of several patches, [P, D, h, w], are compared with windows: D is then D*h*w.
    """
    dtype = compute_dtype(features, prototypes)
    features, prototypes = features.to(dtype), prototypes.to(dtype)
    if prototypes.dim() == 2:
        return features.flatten(2).transpose(1, 2), prototypes
    return unfold(features, prototypes.shape[2:]).transpose(1, 2), prototypes.flatten(1)


def _scores(patches: Tensor, prototypes: Tensor, metric: str) -> Tensor:
    """[N, L, P], larger where the distance is smaller."""
    if metric in ("squared_l2", "l2"):
        centre = prototypes.mean(dim=0)  # distances stay as they are, and products become small
        centre = torch.where(centre.isfinite(), centre, torch.zeros_like(centre))
        patches, prototypes = patches - centre, prototypes - centre
        scores = patches @ prototypes.t() - 0.5 * patches.square().sum(dim=2, keepdim=True)
        nowhere = patches.isinf().any(dim=2) & ~patches.isnan().any(dim=2)  # infinitely far
        return scores.masked_fill(nowhere.unsqueeze(2), -torch.inf)
    if metric == "cosine":
        norms = patches.square().sum(dim=2, keepdim=True).sqrt()
        patches = patches / torch.where(norms == 0, torch.ones_like(norms), norms)
    return patches @ prototypes.t()
