"""The operators in plain PyTorch: what is right, and what runs where no compiled kernel does.

Every distance is a direct difference, sum((z - p)^2), never the expanded form
|z|^2 - 2 z.p + |p|^2, which loses the small distances on which the log-similarity depends most.
Kernels are merged against this file.

N images, P prototypes, K chosen prototypes, D depth, H x W grid, L = H * W locations (row-major).
With prototypes [P, D, h, w], of several patches, a location is a window, of which there are
(H-h+1) x (W-w+1), and D stands for its D*h*w numbers.
Nothing here depends on the number of threads or on the batch an image sits in.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import fold, unfold

from protofast.ops.arguments import check_range, compute_dtype, grid_of

# Temporary tensors are kept to about this many numbers by working on a few images at a time.
_CHUNK_NUMBERS = 1 << 23


def similarity(distances: Tensor, similarity: str = "log", eps: float = 1e-4) -> Tensor:
    """Similarity of a distance: log((d+1)/(d+eps)), -d, or exp(-d).

    The logarithm is taken as log1p((1-eps)/(d+eps)), which keeps its precision for large d; at
    d = 0 it is log(1/eps) to the last bit.
    """
    if similarity == "linear":
        return -distances
    if similarity == "exp":
        return torch.exp(-distances)
    values = torch.log1p((1.0 - eps) / (distances + eps))
    lost = torch.where(distances == 0, math.log(1.0 / eps) - values, torch.zeros_like(values))
    return values + lost.detach()  # not `where` alone, whose derivative at d = 0 would be 0


def similarity_derivative(distances: Tensor, similarity: str, eps: float) -> Tensor:
    """Derivative of `similarity` with respect to the distance."""
    if similarity == "linear":
        return torch.full_like(distances, -1.0)
    if similarity == "exp":
        return -torch.exp(-distances)
    return -(1.0 - eps) / ((distances + 1.0) * (distances + eps))


def pair_distance(patches: Tensor, prototypes: Tensor, metric: str) -> Tensor:
    """Distance of patches [..., D] to prototypes [..., D], pair by pair (broadcast): [...].

    A zero vector has cosine 0 with everything.
    """
    if metric == "squared_l2":
        return (patches - prototypes).square().sum(-1)
    if metric == "l2":
        return _root((patches - prototypes).square().sum(-1))
    dot = (patches * prototypes).sum(-1)
    if metric == "dot":
        return -dot
    norms = _root(patches.square().sum(-1)) * _root(prototypes.square().sum(-1))
    return -dot / torch.where(norms == 0, torch.ones_like(norms), norms)


def _root(squares: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0 for autograd, too, where that of sqrt is infinite."""
    zero = squares == 0
    return torch.where(zero, squares, torch.where(zero, torch.ones_like(squares), squares).sqrt())


def pair_gradients(
    grad: Tensor, patches: Tensor, prototypes: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """Gradients of `pair_distance` for patches and prototypes, times grad [...]: two of [..., D].

    Taken as differences z - p per pair. The gradient of `l2` at distance 0 and of `cosine` at a
    zero vector is 0.
    """
    grad = grad.unsqueeze(-1)
    if metric in ("squared_l2", "l2"):
        difference = patches - prototypes
        factor = 2.0 * grad
        if metric == "l2":
            distance = difference.square().sum(-1, keepdim=True).sqrt()
            factor = torch.where(distance == 0, torch.zeros_like(grad), grad / distance)
        return factor * difference, -factor * difference
    if metric == "dot":
        return -grad * prototypes, -grad * patches
    # For unit vectors u, v: v - cos * u = w + |w|^2 / 2 * u with w = v - u. In doubles, because in
    # single precision w is lost where patch and prototype nearly agree, as after projection.
    patches, prototypes = patches.double(), prototypes.double()
    patch_norm = patches.square().sum(-1, keepdim=True).sqrt()
    prototype_norm = prototypes.square().sum(-1, keepdim=True).sqrt()
    zero = (patch_norm == 0) | (prototype_norm == 0)
    patch_norm = torch.where(zero, torch.ones_like(patch_norm), patch_norm)
    prototype_norm = torch.where(zero, torch.ones_like(prototype_norm), prototype_norm)
    patch_unit, prototype_unit = patches / patch_norm, prototypes / prototype_norm
    difference = prototype_unit - patch_unit
    half = 0.5 * difference.square().sum(-1, keepdim=True)  # 1 - cos
    factor = torch.where(zero, torch.zeros_like(grad), -grad).double()
    return (
        (factor * (difference + half * patch_unit) / patch_norm).to(grad.dtype),
        (factor * (half * prototype_unit - difference) / prototype_norm).to(grad.dtype),
    )


def nearest_patch(
    features: Tensor, prototypes: Tensor, metric: str, similarity_name: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Least distance of every prototype to any patch of every image, where, and its similarity.

    features [N, D, H, W], prototypes [P, D] -> activations, distances, locations, each [N, P].
    The first location in row-major order wins ties; a NaN in a patch wins over everything.
    """
    dtype = compute_dtype(features, prototypes)
    shape = (features.shape[0], prototypes.shape[0])
    distances = torch.empty(shape, dtype=dtype, device=features.device)
    locations = torch.empty(shape, dtype=torch.int64, device=features.device)
    rows = prototypes.to(dtype).flatten(1)  # [P, D]
    if distances.numel() > 0:
        depth, cells = rows.shape[1], math.prod(grid_of(features, prototypes))
        for some in _image_chunks(shape[0], shape[1] * max(cells, depth)):
            patches = _patches(features[some], prototypes, dtype)  # [n, L, D]
            winners = _selection_map(patches, rows, metric).argmin(dim=1)  # [n, P]
            at_winners = patches.gather(1, winners.unsqueeze(-1).expand(-1, -1, depth))
            distances[some] = pair_distance(at_winners, rows, metric)  # [n, P]
            locations[some] = winners
    return similarity(distances, similarity_name, eps), distances, locations


def nearest_patches(
    features: Tensor, prototypes: Tensor, k: int, metric: str, similarity_name: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The k least distances of every prototype to patches of every image, nearest first.

    features [N, D, H, W], prototypes [P, D] -> activations, distances, locations, each [N, P, k].
    Equal distances go by location; NaN comes before everything.
    """
    dtype = compute_dtype(features, prototypes)
    shape = (features.shape[0], prototypes.shape[0], k)
    distances = torch.empty(shape, dtype=dtype, device=features.device)
    locations = torch.empty(shape, dtype=torch.int64, device=features.device)
    rows = prototypes.to(dtype).flatten(1)  # [P, D]
    if distances.numel() > 0:
        numbers_each = max(math.prod(grid_of(features, prototypes)), k * rows.shape[1])
        for some in _image_chunks(shape[0], shape[1] * numbers_each):
            patches = _patches(features[some], prototypes, dtype)  # [n, L, D]
            for few in _image_chunks(shape[1], len(patches) * numbers_each):
                found = _nearest(patches, rows[few], k, metric)
                distances[some, few], locations[some, few] = found
    return similarity(distances, similarity_name, eps), distances, locations


def _nearest(patches: Tensor, prototypes: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """Distances and locations [n, p, k] for patches [n, L, D] and prototypes [p, D]."""
    map_ = _selection_map(patches, prototypes, metric).transpose(1, 2)  # [n, p, L]
    winners = _ascending(map_)[..., :k].sort().values  # [n, p, k], by location
    image = torch.arange(len(patches), device=patches.device)[:, None, None]
    exact = pair_distance(patches[image, winners], prototypes.unsqueeze(1), metric)
    order = _ascending(exact)
    return exact.gather(2, order), winners.gather(2, order)


def _ascending(values: Tensor) -> Tensor:
    """The order of the last dimension: NaN, then ascending; equal values as they are."""
    order = values.argsort(dim=-1, stable=True)
    numbers = ~values.gather(-1, order).isnan()
    return order.gather(-1, numbers.to(torch.uint8).argsort(dim=-1, stable=True))


def nearest_patch_backward(
    grad_activations: Tensor | None,
    grad_distances: Tensor | None,
    features: Tensor,
    prototypes: Tensor,
    distances: Tensor,
    locations: Tensor,
    metric: str,
    similarity_name: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of `nearest_patch` for features [N, D, H, W] and prototypes [P, D].

    They flow through the winning location of each (image, prototype) pair alone; each image's are
    added up in the order of the prototypes, each prototype's in the order of the images.
    """
    check_range("locations", locations, math.prod(grid_of(features, prototypes)))
    dtype = compute_dtype(features, prototypes)
    grad = torch.zeros_like(distances)  # [N, P]
    if grad_distances is not None:
        grad = grad + grad_distances
    if grad_activations is not None:
        grad = grad + grad_activations * similarity_derivative(distances, similarity_name, eps)
    grad_features = torch.zeros_like(features)
    rows = prototypes.to(dtype).flatten(1)  # [P, D]
    grad_rows = rows.new_zeros(rows.shape)
    for n in range(features.shape[0]):
        patches = _patches(features[n : n + 1], prototypes, dtype)[0]  # [L, D]
        to_patches, to_prototypes = pair_gradients(
            grad[n], patches[locations[n]], rows, metric
        )  # [P, D] each
        summed = _sum_rows(torch.zeros_like(patches), locations[n], to_patches)  # [L, D]
        grad_features[n] = _to_features(summed, features, prototypes)
        grad_rows += to_prototypes
    return grad_features, grad_rows.view(prototypes.shape).to(prototypes.dtype)


def distance_map(features: Tensor, prototypes: Tensor, index: Tensor | None, metric: str) -> Tensor:
    """Distance to every patch: features [N, D, H, W], prototypes [P, D] -> [N, K, H, W].

    Of windows, for prototypes [P, D, h, w], the map is [N, K, H-h+1, W-w+1].

    `index` [N, K] chooses prototypes per image; without it all P are taken.
    """
    if index is not None:
        check_range("index", index, prototypes.shape[0])
    dtype = compute_dtype(features, prototypes)
    count = prototypes.shape[0] if index is None else index.shape[1]
    grid = grid_of(features, prototypes)
    distances = torch.empty(features.shape[0], count, *grid, dtype=dtype, device=features.device)
    rows = prototypes.to(dtype).flatten(1)  # [P, D]
    if distances.numel() > 0:
        for n in range(features.shape[0]):
            chosen = rows if index is None else rows[index[n]]  # [K, D]
            patches = _patches(features[n : n + 1], prototypes, dtype)[0]  # [L, D]
            for some in _image_chunks(count, patches.numel()):
                map_ = pair_distance(patches, chosen[some].unsqueeze(1), metric)  # [k, L]
                distances[n, some] = map_.reshape(-1, *grid)
    return distances


def distance_map_backward(
    grad: Tensor, features: Tensor, prototypes: Tensor, index: Tensor | None, metric: str
) -> tuple[Tensor, Tensor]:
    """Gradients of `distance_map` for features and prototypes, given grad [N, K, H, W]."""
    if index is not None:
        check_range("index", index, prototypes.shape[0])
    dtype = compute_dtype(features, prototypes)
    grad_features = torch.zeros_like(features)
    rows = prototypes.to(dtype).flatten(1)  # [P, D]
    grad_rows = rows.new_zeros(rows.shape)
    everything = torch.arange(prototypes.shape[0], device=prototypes.device)
    for n in range(features.shape[0]):
        which = everything if index is None else index[n]  # [K]
        patches = _patches(features[n : n + 1], prototypes, dtype)[0]  # [L, D]
        summed = torch.zeros_like(patches)
        for some in _image_chunks(len(which), patches.numel()):
            chosen = rows[which[some]].unsqueeze(1)  # [k, 1, D]
            to_patches, to_prototypes = pair_gradients(
                grad[n, some].flatten(1).to(dtype), patches, chosen, metric
            )  # [k, L, D] each
            summed += to_patches.sum(0)
            _sum_rows(grad_rows, which[some], to_prototypes.sum(1))
        grad_features[n] = _to_features(summed, features, prototypes)
    return grad_features, grad_rows.view(prototypes.shape).to(prototypes.dtype)


def _patches(features: Tensor, prototypes: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, D, H, W] -> what prototypes are compared with, contiguous rows [n, L, D] of `dtype`."""
    if prototypes.dim() == 2:
        return features.flatten(2).transpose(1, 2).to(dtype).contiguous()
    return unfold(features.to(dtype), prototypes.shape[2:]).transpose(1, 2).contiguous()


def _to_features(rows: Tensor, features: Tensor, prototypes: Tensor) -> Tensor:
    """Gradients of the rows of one image, [L, D], -> those of its features [D, H, W]."""
    if prototypes.dim() == 2:
        return rows.t().reshape(features.shape[1:]).to(features.dtype)
    return fold(rows.t(), features.shape[2:], prototypes.shape[2:]).to(features.dtype)


def _selection_map(patches: Tensor, prototypes: Tensor, metric: str) -> Tensor:
    """Distances [n, L, P] good enough to find the winner; its own distance is computed anew."""
    if metric in ("squared_l2", "l2"):
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(patches, prototypes.unsqueeze(0), compute_mode=exact)
    count = max(1, _CHUNK_NUMBERS // max(1, patches.numel()))
    maps = [
        pair_distance(patches.unsqueeze(2), some, metric) for some in prototypes.split(count)
    ]  # [n, L, p] each
    return torch.cat(maps, dim=2)


def _sum_rows(target: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """target[index[i]] += rows[i], in place, in the order of i whatever the threads."""
    if target.device.type == "cpu":
        return target.index_add_(0, index, rows)
    # index_add_ on CUDA uses floating-point atomics; index_put_ sorts first.
    return target.index_put_((index,), rows, accumulate=True)


def _image_chunks(count: int, numbers_each: int) -> Iterator[slice]:
    step = max(1, _CHUNK_NUMBERS // max(1, numbers_each))
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))
