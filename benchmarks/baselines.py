"""The prototype layer as others write it, and ours: what the benchmarks of the layer compare.

Every layer takes features [N, D, H, W] and prototypes [P, D] and returns (activations, distances),
each [N, P]: squared distance to the nearest patch and its log-similarity. All of them are float32,
or float64 for float64 inputs; features in half precision are converted first, as protofast does.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from protofast import PrototypeLayer, nearest_patch

Layer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
EPS = 1e-4
# Bytes of the tile that `chunked` reuses: small enough for the second-level caches of two cores.
TILE_BYTES = 3 << 20


def ours(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """protofast's operator."""
    found = nearest_patch(features, prototypes)
    return found.activations, found.distances


class _Frozen:
    """protofast's layer with its prototypes packed once: for inference, forward alone."""

    def __init__(self) -> None:
        self._layer: PrototypeLayer | None = None

    def __call__(self, features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        if self._layer is None:
            layer = PrototypeLayer(*prototypes.shape).to(prototypes)
            with torch.no_grad():
                layer.prototypes.copy_(prototypes)
            self._layer = layer.eval().freeze()
        found = self._layer(features)
        return found.activations, found.distances


def _tensor_cores(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """protofast's operator on a GPU by the path that is not taken unless it is asked for."""
    before = os.environ.get("PROTOFAST_GPU")
    os.environ["PROTOFAST_GPU"] = "tensor_cores"
    try:
        return ours(features, prototypes)
    finally:
        del os.environ["PROTOFAST_GPU"]
        if before is not None:
            os.environ["PROTOFAST_GPU"] = before


def original(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """ProtoPNet's layer as published: two convolutions, relu, max-pooling of the negated map.

    Chen et al. 2019; the second convolution, with ones, sums the squares of every patch.
    """
    distances = original_distance_map(_single(features), prototypes)
    window = distances.shape[2:]
    distances = -F.max_pool2d(-distances, kernel_size=window).flatten(1)
    return torch.log((distances + 1) / (distances + EPS)), distances


def original_distance_map(features: Tensor, prototypes: Tensor) -> Tensor:
    """[N, P, H, W]; also what ProtoPNet's push and prune start from."""
    kernels = prototypes[:, :, None, None]
    squares = F.conv2d(features.square(), torch.ones_like(kernels))
    products = F.conv2d(features, kernels)
    return F.relu(squares - 2 * products + kernels.square().sum(dim=(1, 2, 3)).view(-1, 1, 1))


def eager(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """The best eager form found: one matrix product for all patches of all images."""
    patches = _rows(_single(features))  # [N, L, D]
    count, cells, depth = patches.shape
    patches = patches.reshape(count * cells, depth)
    squares = patches.square().sum(1, keepdim=True)
    distances = torch.addmm(squares, patches, prototypes.t(), alpha=-2)
    return _finish(distances.view(count, cells, -1).min(dim=1).values, prototypes)


def batched(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """The same with one matrix product for each image, which reads features as they lie."""
    columns = _single(features).flatten(2)  # [N, D, L]
    squares = columns.square().sum(1, keepdim=True)
    stack = prototypes.expand(len(columns), -1, -1)
    distances = torch.baddbmm(squares.expand(-1, len(prototypes), -1), stack, columns, alpha=-2)
    return _finish(distances.min(dim=2).values, prototypes)


def chunked(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """The smartest plain PyTorch: a few images at a time into one reused tile, sparse backward."""
    distances: Tensor = _Chunked.apply(_single(features), prototypes)
    distances = distances.clamp_min(0)
    return torch.log((distances + 1) / (distances + EPS)), distances


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, prototypes):
        patches = _rows(features)  # [N, L, D]
        count, cells, depth = patches.shape
        wants_gradient = any(ctx.needs_input_grad)
        distances = patches.new_empty(count, len(prototypes))
        locations = torch.empty_like(distances, dtype=torch.int64) if wants_gradient else None
        row_bytes = cells * len(prototypes) * patches.element_size()
        images = max(1, min(count, TILE_BYTES // max(row_bytes, 1)))
        tile = patches.new_empty(images * cells, len(prototypes))
        for start in range(0, count, images):
            stop = min(start + images, count)
            some = patches[start:stop].reshape(-1, depth)
            squares = some.square().sum(1, keepdim=True)
            torch.addmm(squares, some, prototypes.t(), alpha=-2, out=tile[: len(some)])
            part = tile[: len(some)].view(stop - start, cells, -1)
            if locations is None:
                torch.amin(part, dim=1, out=distances[start:stop])
            else:
                torch.min(part, dim=1, out=(distances[start:stop], locations[start:stop]))
        distances += prototypes.square().sum(1)
        ctx.save_for_backward(features, prototypes, locations)
        return distances

    @staticmethod
    def backward(ctx, grad):
        features, prototypes, locations = ctx.saved_tensors
        patches = _rows(features)
        grad_patches = torch.zeros(patches.shape, dtype=patches.dtype, device=patches.device)
        grad_prototypes = torch.zeros_like(prototypes)
        grad = 2 * grad
        for image, winners in enumerate(locations):
            pairs = (patches[image].index_select(0, winners) - prototypes) * grad[image, :, None]
            grad_patches[image].index_add_(0, winners, pairs)
            grad_prototypes -= pairs
        grad_features = grad_patches.transpose(1, 2).reshape(features.shape)
        return grad_features, grad_prototypes


def _compiled() -> Layer:
    """torch.compile of the best eager form, for the shapes that it is first called with alone."""
    torch.compiler.reset()
    compiled: Layer = torch.compile(eager, dynamic=False, fullgraph=True)
    return compiled


def fresh(name: str) -> Layer:
    """The layer called `name`, without what it kept of other inputs."""
    return _LAYERS[name]()


_LAYERS: dict[str, Callable[[], Layer]] = {
    "ours": lambda: ours,
    "frozen": _Frozen,
    "tensor_cores": lambda: _tensor_cores,
    "original": lambda: original,
    "eager": lambda: eager,
    "batched": lambda: batched,
    "chunked": lambda: chunked,
    "compiled": _compiled,
}


def _single(features: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, which is exact; others as they are."""
    return features.float() if features.element_size() == 2 else features


def _rows(features: Tensor) -> Tensor:
    """Patches [N, L, D]: a view, contiguous where the features are channels-last."""
    return features.flatten(2).transpose(1, 2)


def _finish(least: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    distances = (least + prototypes.square().sum(1)).clamp_min(0)
    return torch.log((distances + 1) / (distances + EPS)), distances
