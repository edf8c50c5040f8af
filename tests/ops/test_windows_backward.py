"""Gradients of prototypes of several patches, and that their windows are never unfolded at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import (
    EPS,
    LAYOUTS,
    METRICS,
    PAIRS,
    WINDOWS,
    Shape,
    search_windows,
    window_problem,
)
from implementations import Implementation, Reference
from torch import Tensor
from torch.nn.functional import unfold
from torch.utils._python_dispatch import TorchDispatchMode

from protofast.ops import (
    NearestPatch,
    distance_map,
    dot_and_cosine,
    focal_similarity,
    mean_distance,
    nearest_patch,
    nearest_patches,
    reference,
)


def gradients(
    implementation: Implementation,
    features: Tensor,
    prototypes: Tensor,
    metric: str = "squared_l2",
    similarity: str = "log",
) -> tuple[NearestPatch, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What was found, gradients of activations and distances, and those of the inputs."""
    found = search_windows(implementation, features, prototypes, metric, similarity)
    generator = torch.Generator().manual_seed(5)
    given = torch.randn(2, *found.distances.shape, generator=generator).to(found.distances)
    if isinstance(implementation, Reference):
        got = reference.nearest_patch_backward(
            *given,
            features,
            prototypes,
            found.distances,
            found.locations,
            metric,
            similarity,
            EPS,
        )
    else:
        leaves = features.detach().requires_grad_(), prototypes.detach().requires_grad_()
        with implementation.active():
            outputs = nearest_patch(*leaves, metric=metric, similarity=similarity)[:2]
            got = torch.autograd.grad(outputs, leaves, tuple(given))  # type: ignore[assignment]
    return found, (given[0], given[1]), got


def exact_gradients(
    features: Tensor,
    prototypes: Tensor,
    locations: Tensor,
    given: tuple[Tensor, Tensor],
    metric: str,
    similarity: str,
) -> tuple[Tensor, ...]:
    """By autograd through `unfold` and the winners, in float64."""
    leaves = features.detach().double().requires_grad_(), prototypes.double().requires_grad_()
    windows = unfold(leaves[0], prototypes.shape[2:]).mT  # [N, L, D*h*w]
    winners = windows.gather(1, locations.unsqueeze(2).expand(-1, -1, windows.shape[2]))
    distances = reference.pair_distance(winners, leaves[1].flatten(1), metric)
    outputs = reference.similarity(distances, similarity, EPS), distances
    return torch.autograd.grad(outputs, leaves, tuple(grad.double() for grad in given))


@pytest.mark.parametrize(("metric", "similarity"), PAIRS)
def test_gradients_within_1e_6(
    implementation: Implementation, metric: str, similarity: str
) -> None:
    for window in WINDOWS:
        features, prototypes = window_problem(window, device=implementation.device)
        found, given, got = gradients(implementation, features, prototypes, metric, similarity)
        exact = exact_gradients(features, prototypes, found.locations, given, metric, similarity)
        for a, b, like in zip(got, exact, (features, prototypes), strict=True):
            assert (a.shape, a.dtype) == (like.shape, like.dtype)
            assert (a.double() - b).norm() <= 1e-6 * b.norm()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_gradients_in_every_layout(implementation: Implementation, layout: str) -> None:
    features, prototypes = window_problem((2, 3), device=implementation.device)
    _, _, expected = gradients(implementation, features, prototypes)
    _, _, got = gradients(implementation, LAYOUTS[layout](features), LAYOUTS[layout](prototypes))
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gradients_are_rounded_once(
    implementation: Implementation, dtype: torch.dtype
) -> None:
    """And not once for each window that a patch is in."""
    if implementation.device.type == "cuda":
        pytest.skip("on GPUs windows are unfolded, and their gradients rounded before folding")
    features, prototypes = window_problem((3, 3))
    features, prototypes = features.to(dtype), prototypes.to(dtype)
    _, _, got = gradients(implementation, features, prototypes)
    _, _, wide = gradients(implementation, features.float(), prototypes.float())
    for a, b in zip(got, wide, strict=True):
        assert torch.equal(a, b.to(dtype))


def test_gradients_are_the_same_from_run_to_run_and_for_any_number_of_threads(
    implementation: Implementation, two_threads: None
) -> None:
    features, prototypes = window_problem((2, 2), Shape(9, 20, 33, 6, 6))
    features, prototypes = features.to(implementation.device), prototypes.to(implementation.device)
    _, _, expected = gradients(implementation, features, prototypes)
    torch.set_num_threads(1)
    _, _, got = gradients(implementation, features, prototypes)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_of_the_map(implementation: Implementation, metric: str) -> None:
    if implementation.device.type == "cuda":
        pytest.skip("on GPUs windows are unfolded")
    for window in WINDOWS:
        features, prototypes = window_problem(window)
        index = torch.tensor([[3, 0, 3], [1, 2, 19], [0, 0, 0]])
        distances = implementation.distance_map(features, prototypes, index, metric)
        grad = torch.randn(distances.shape, generator=torch.Generator().manual_seed(2))
        got = implementation.distance_map_backward(grad, features, prototypes, index, metric)
        leaves = features.double().requires_grad_(), prototypes.double().requires_grad_()
        windows = unfold(leaves[0], window).mT.unsqueeze(1)  # [N, 1, L, D*h*w]
        chosen = leaves[1].flatten(1)[index].unsqueeze(2)  # [N, K, 1, D*h*w]
        exact = reference.pair_distance(windows, chosen, metric).view_as(distances)
        torch.testing.assert_close(distances.double(), exact.detach(), rtol=2e-6, atol=0)
        for a, b in zip(got, torch.autograd.grad(exact, leaves, grad.double()), strict=True):
            assert (a.double() - b).norm() <= 1e-6 * b.norm()


@pytest.mark.parametrize("shape", [Shape(0, 4, 3, 4, 5), Shape(2, 0, 3, 4, 5)], ids=str)
def test_nothing_to_compare(implementation: Implementation, shape: Shape) -> None:
    features, prototypes = window_problem((2, 2), shape, device=implementation.device)
    found, _, got = gradients(implementation, features, prototypes)
    assert found.locations.shape == (shape.images, shape.prototypes)
    assert torch.equal(got[0], torch.zeros_like(features))
    assert torch.equal(got[1], torch.zeros_like(prototypes))
    maps = distance_map(features, prototypes)
    assert maps.shape == (shape.images, shape.prototypes, 3, 4)


# ------------------------------------------------------------------ nothing is unfolded


class Recorder(TorchDispatchMode):
    """Notes every operator that is called, and the largest tensor that one returns."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        self.called.append(func.overloadpacket.__name__)
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_operators_get_the_features_and_not_their_windows() -> None:
    features, prototypes = window_problem((3, 3), Shape(4, 5, 64, 9, 9))
    features.requires_grad_()
    prototypes.requires_grad_()
    with Recorder() as recorder:
        found = nearest_patch(features, prototypes)
        (found.activations + found.distances).sum().backward()
        several = nearest_patches(features, prototypes, 2)
        several.distances.sum().backward()
        both = dot_and_cosine(features, prototypes)
        (both.dots + both.cosines).sum().backward()
        distance_map(features, prototypes).sum().backward()
        mean_distance(features, prototypes).sum().backward()
        focal_similarity(features, prototypes).sum().backward()
    assert {"nearest_patch_backward", "distance_map_backward"} <= set(recorder.called)
    assert "im2col" not in recorder.called
    assert recorder.largest == features.numel()  # unfolded, 5 times as much


def resident(name: str) -> int:
    """Bytes: `VmRSS` now, `VmHWM` at most since `forget_the_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def forget_the_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system has no high-water mark that can be set back")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_unfolded_batch_is_never_in_memory(memory_format: torch.memory_format) -> None:
    """The resident set's high-water mark during forward and backward."""
    features = torch.rand(200, 64, 12, 12).contiguous(memory_format=memory_format)  # 7 MB
    features.requires_grad_()
    prototypes = torch.rand(4, 64, 4, 4, requires_grad=True)
    growth = []
    for _ in range(3):
        features.grad = None
        forget_the_peak()
        before = resident("VmRSS")
        nearest_patch(features, prototypes).distances.sum().backward()
        growth.append(resident("VmHWM") - before)
    windows = 200 * 64 * 4 * 4 * 9 * 9 * 4  # 66 MB in all
    assert min(growth) < windows / 2
