"""The batched masked second pass of the alignment step: 160 maps of 7x7 over images of 224x224.

10 maps for each image (800 on a GPU, which 160 would not fill), float32, quantile 0.9, into memory
that is used again. Baselines in PyTorch, fastest first known: `kthvalue`, which takes a neighbour
of the quantile, and `quantile`, which takes what the definition says.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timing import measure, synchronised
from torch import Tensor
from torch.nn import functional as F

from protofast.ops.masked_view import masked_view, masked_view_out

pytestmark = pytest.mark.benchmark(timer=synchronised)
MAPS_PER_IMAGE, GRID, SIZE, QUANTILE = 10, 7, 224, 0.9
Views = tuple[Tensor, Tensor]


class Problem:
    """Images, maps, and the memory for the views."""

    def __init__(self, device: str) -> None:
        count = 16 if device == "cpu" else 80
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(count, 3, SIZE, SIZE, generator=generator)
        maps = torch.rand(count, MAPS_PER_IMAGE, GRID, GRID, generator=generator)
        self.images, self.maps = images.to(device), maps.to(device)
        total = count * MAPS_PER_IMAGE
        self.views = torch.empty(total, 3, SIZE, SIZE, device=device)
        self.masks = torch.empty(total, SIZE, SIZE, dtype=torch.bool, device=device)

    @property
    def bytes_written(self) -> int:
        return self.views.numel() * self.views.element_size() + self.masks.numel()


def ours(problem: Problem) -> Views:
    given = (problem.images, problem.maps, problem.views, problem.masks)
    return tuple(masked_view_out(*given, quantile=QUANTILE))


def ours_fresh(problem: Problem) -> Views:
    """Into new memory each time, which the system has to hand out page by page."""
    return tuple(masked_view(problem.images, problem.maps, quantile=QUANTILE))


def quantile(problem: Problem) -> Views:
    large = _upsampled(problem)
    threshold = torch.quantile(large.flatten(2), QUANTILE, dim=2)
    return _masked(problem, large, threshold)


def kthvalue(problem: Problem) -> Views:
    large = _upsampled(problem)
    rank = int(QUANTILE * (SIZE * SIZE - 1)) + 1
    threshold = large.flatten(2).kthvalue(rank, dim=2).values
    return _masked(problem, large, threshold)


def _upsampled(problem: Problem) -> Tensor:
    return F.interpolate(problem.maps, size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def _masked(problem: Problem, large: Tensor, threshold: Tensor) -> Views:
    masks = large > threshold[:, :, None, None]  # [N, K, S, T]
    views = problem.views.view(*masks.shape[:2], 3, SIZE, SIZE)
    torch.mul(problem.images.unsqueeze(1), masks.unsqueeze(2), out=views)
    return problem.views, masks.flatten(0, 1)


LAYERS: dict[str, Callable[[Problem], Views]] = {
    "ours": ours,
    "ours_fresh": ours_fresh,
    "kthvalue": kthvalue,
    "quantile": quantile,
}


@pytest.mark.parametrize("layer", LAYERS)
def test_masked_view(benchmark: Any, device: str, layer: str, quick: bool) -> None:
    problem = Problem(device)
    benchmark.group = f"masked view {device}"
    facts = {"device": device, "layer": layer, "bytes": problem.bytes_written}
    benchmark.extra_info.update(measured="masked_view", **facts)
    _check(problem, LAYERS[layer])
    seconds = 0.3 if quick else 1.5
    measure(benchmark, lambda: LAYERS[layer](problem), seconds=seconds)


def _check(problem: Problem, layer: Callable[[Problem], Views]) -> None:
    """The masks of `quantile`, but for pixels within rounding of the threshold; views to match."""
    _, expected = quantile(problem)
    problem.views.fill_(torch.nan)
    views, masks = layer(problem)
    assert (masks != expected).float().mean() < 1e-4
    shown = problem.images.repeat_interleave(MAPS_PER_IMAGE, dim=0) * masks.unsqueeze(1)
    assert torch.equal(views, shown)
