"""The operators beside the layer at the headline shape, against PyTorch; forward alone.

`nearest_patches`, `dot_and_cosine`, and `nearest_patch` for prototypes of 2 x 2 patches.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_runs import HEADLINE
from timing import measure, synchronised
from torch import Tensor
from torch.nn import functional as F

from protofast.ops import dot_and_cosine, nearest_patch, nearest_patches

pytestmark = [
    pytest.mark.benchmark(timer=synchronised),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch"),
]
K = 5
SINGLE, WINDOWS = (HEADLINE.P, HEADLINE.D), (HEADLINE.P, HEADLINE.D, 2, 2)
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def nearest_ours(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    found = nearest_patches(features, prototypes, K)
    return found.activations, found.distances


def nearest_eager(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """The map [N, P, L] by one product for each image, and `topk` along its last dimension."""
    columns = features.flatten(2)  # [N, D, L]
    squares = columns.square().sum(1, keepdim=True).expand(-1, len(prototypes), -1)
    stack = prototypes.expand(len(columns), -1, -1)
    scores = torch.baddbmm(squares, stack, columns, alpha=-2)
    least = scores.topk(K, dim=2, largest=False).values
    distances = (least + prototypes.square().sum(1)[:, None]).clamp_min(0)
    return torch.log((distances + 1) / (distances + 1e-4)), distances


def both_ours(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    found = dot_and_cosine(features, prototypes)
    return found.dots, found.cosines


def both_eager(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """One matrix product for both maxima."""
    rows = features.flatten(2).transpose(1, 2)  # [N, L, D]
    products = (rows.flatten(0, 1) @ prototypes.t()).view(*rows.shape[:2], -1)  # [N, L, P]
    cosines = (products / rows.norm(dim=2, keepdim=True)).amax(dim=1)
    return products.amax(dim=1), cosines / prototypes.norm(dim=1)


def both_original(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Two convolutions and two poolings, as TesNet's code (Wang et al. 2021) has it."""
    kernels = prototypes[:, :, None, None]
    found = []
    for maps, weights in (
        (features, kernels),
        (F.normalize(features, dim=1), F.normalize(kernels, dim=1)),
    ):
        scores = F.conv2d(maps, weights)
        found.append(F.max_pool2d(scores, kernel_size=scores.shape[2:]).flatten(1))
    return found[0], found[1]


def windows_ours(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    found = nearest_patch(features, prototypes)
    return found.activations, found.distances


def windows_eager(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """The windows unfolded, [N, D*h*w, L], and one matrix product for each image."""
    columns = F.unfold(features, prototypes.shape[2:])
    rows = prototypes.flatten(1)
    squares = columns.square().sum(1, keepdim=True).expand(-1, len(rows), -1)
    scores = torch.baddbmm(squares, rows.expand(len(columns), -1, -1), columns, alpha=-2)
    distances = (scores.amin(dim=2) + rows.square().sum(1)).clamp_min(0)
    return torch.log((distances + 1) / (distances + 1e-4)), distances


def windows_original(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Two convolutions, relu and max-pooling, as ProtoPNet's code (Chen et al. 2019) has it."""
    squares = F.conv2d(features.square(), torch.ones_like(prototypes))
    norms = prototypes.square().sum(dim=(1, 2, 3)).view(-1, 1, 1)
    map_ = F.relu(squares - 2 * F.conv2d(features, prototypes) + norms)
    distances = -F.max_pool2d(-map_, kernel_size=map_.shape[2:]).flatten(1)
    return torch.log((distances + 1) / (distances + 1e-4)), distances


def compiled(step: Step) -> Step:
    torch.compiler.reset()
    result: Step = torch.compile(step, dynamic=False, fullgraph=True)
    return result


STEPS: dict[str, dict[str, Callable[[], Step]]] = {
    f"nearest_patches, k = {K}": {
        "ours": lambda: nearest_ours,
        "eager": lambda: nearest_eager,
        "compiled": lambda: compiled(nearest_eager),
    },
    "dot_and_cosine": {
        "ours": lambda: both_ours,
        "original": lambda: both_original,
        "eager": lambda: both_eager,
        "compiled": lambda: compiled(both_eager),
    },
    "nearest_patch, 2 x 2 windows": {
        "ours": lambda: windows_ours,
        "original": lambda: windows_original,
        "eager": lambda: windows_eager,
        "compiled": lambda: compiled(windows_eager),
    },
}


@pytest.mark.parametrize(
    ("operator", "layer"), [(name, layer) for name, layers in STEPS.items() for layer in layers]
)
def test_related_operator(
    benchmark: Any, device: str, operator: str, layer: str, quick: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    size = (HEADLINE.N, HEADLINE.D, HEADLINE.H, HEADLINE.W)
    features = torch.randn(size, generator=generator).sigmoid_().to(device)
    shape = WINDOWS if "windows" in operator else SINGLE
    prototypes = torch.rand(shape, generator=generator).to(device)
    step, ours = STEPS[operator][layer](), STEPS[operator]["ours"]()
    benchmark.group = f"{operator} {device}"
    benchmark.extra_info.update(measured="related", operator=operator, layer=layer, device=device)
    with torch.no_grad():
        pairs = zip(step(features, prototypes), ours(features, prototypes), strict=True)
        for place, (one, other) in enumerate(pairs):
            error = (one - other).abs().max().item()
            allowed = 2e-6 * prototypes[0].numel()
            assert error <= allowed, f"{operator}, {layer}: result {place} off by {error}"
        measure(benchmark, lambda: step(features, prototypes), seconds=0.2 if quick else 0.4)
