"""Inputs for the operators' tests, and float64 truth to hold results against."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from implementations import EPS, Implementation
from torch import Tensor

from protofast.ops import NearestPatch, reference
from protofast.ops.windows import flatten_windows

# Every pair that is allowed.
PAIRS = [
    *(
        (metric, similarity)
        for metric in ("squared_l2", "l2")
        for similarity in ("log", "linear", "exp")
    ),
    ("dot", "linear"),
    ("cosine", "linear"),
]
METRICS = ("squared_l2", "l2", "dot", "cosine")


class Shape(NamedTuple):
    """Sizes of a problem."""

    images: int
    prototypes: int
    depth: int
    height: int
    width: int


SHAPES = [
    Shape(1, 1, 1, 1, 1),
    Shape(3, 17, 5, 1, 1),
    Shape(2, 33, 64, 7, 7),
    Shape(3, 5, 129, 2, 3),
    Shape(2, 31, 512, 3, 4),
    Shape(17, 9, 31, 5, 1),
]

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced_images": lambda x: torch.cat([x, x])[: len(x)][:, :],
    "every_other_image": lambda x: x.repeat_interleave(2, 0)[::2],
    "every_other_channel": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every_other_location": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "cropped": lambda x: torch.nn.functional.pad(x, (1, 2, 1, 0))[..., 1:, 1:-2],
    "transposed": lambda x: x.mT.contiguous().mT,
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


def random_problem(
    shape: Shape, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: object = "cpu"
) -> tuple[Tensor, Tensor]:
    """Features [N, D, H, W] and prototypes [P, D], uniform in [0, 1) as after a sigmoid."""
    generator = torch.Generator().manual_seed(seed)
    n, p, d, h, w = shape
    features = torch.rand(n, d, h, w, generator=generator, dtype=torch.float64)
    prototypes = torch.rand(p, d, generator=generator, dtype=torch.float64)
    return features.to(device, dtype), prototypes.to(device, dtype)


def put_patches_into_prototypes(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Set prototype p to patch 3p of image p (cyclically); returns which images and locations."""
    n, _, h, w = features.shape
    index = torch.arange(len(prototypes), device=features.device)
    images, locations = index % n, (3 * index) % (h * w)
    patches = features.flatten(2)[images, :, locations]  # [P, D]
    prototypes.copy_(patches)
    return images, locations


class Truth(NamedTuple):
    """In float64: distances of all patches, the least ones, and norms to measure errors by."""

    maps: Tensor  # [N, P, L]
    least: Tensor  # [N, P]
    norms: Tensor  # [N, P], |z|^2 + |p|^2 with the largest z; 1 for cosine


def truth(features: Tensor, prototypes: Tensor, metric: str) -> Truth:
    features, prototypes = features.double(), prototypes.double()
    maps = reference.distance_map(features, prototypes, None, metric).flatten(2)
    largest = features.flatten(2).square().sum(1).amax(1)  # [N]
    norms = largest.unsqueeze(1) + prototypes.square().sum(1)
    if metric == "cosine":
        norms = torch.ones_like(norms)
    return Truth(maps, maps.amin(2), norms)


def check_against_truth(
    found: NearestPatch,
    features: Tensor,
    prototypes: Tensor,
    metric: str,
    similarity: str,
    implementation: Implementation,
) -> None:
    """The numerics contract for float32 (PERFORMANCE, section 4, points 3 to 5)."""
    exact = truth(features, prototypes, metric)
    here = exact.maps.gather(2, found.locations.unsqueeze(2)).squeeze(2)
    signed = metric in ("dot", "cosine")
    scale = exact.norms if signed else here
    error = (found.distances.double() - here).abs()
    assert (error <= implementation.distance_tolerance * scale).all()
    regret = here - exact.least if metric != "l2" else here.square() - exact.least.square()
    assert (regret <= 1e-5 * exact.norms).all()
    expected = reference.similarity(here, similarity, EPS)
    bound = implementation.similarity_tolerance * (exact.norms if signed else 1.0)
    if similarity == "linear" and not signed:
        bound = implementation.distance_tolerance * here.clamp(min=1.0)
    assert ((found.activations.double() - expected).abs() <= bound).all()


# Of prototypes on a grid of 4 x 5: one patch, some, a row, a column, the whole grid.
WINDOW_SHAPE = Shape(3, 20, 9, 4, 5)
WINDOWS = [(1, 1), (2, 2), (1, 3), (1, 5), (3, 1), (3, 4), (4, 5)]


def window_problem(
    window: tuple[int, int], shape: Shape = WINDOW_SHAPE, *, device: object = "cpu"
) -> tuple[Tensor, Tensor]:
    """Features [N, D, H, W] and prototypes [P, D, h, w], uniform in [0, 1)."""
    features, _ = random_problem(shape)
    generator = torch.Generator().manual_seed(1)
    prototypes = torch.rand(shape.prototypes, shape.depth, *window, generator=generator)
    return features.to(device), prototypes.to(device)


def search_windows(
    implementation: Implementation, features: Tensor, prototypes: Tensor, *options: Any
) -> NearestPatch:
    """As the public function does: on GPUs the windows are unfolded."""
    return implementation.nearest_patch(*flatten_windows(features, prototypes), *options)
