"""The backward contract, for every implementation."""

import math
from typing import Any

import pytest
import torch
from cases import (
    EPS,
    LAYOUTS,
    METRICS,
    PAIRS,
    SHAPES,
    Shape,
    put_patches_into_prototypes,
    random_problem,
)
from implementations import Implementation
from torch import Tensor

from protofast.ops import NearestPatch, reference


def random_gradients(found: NearestPatch) -> tuple[Tensor, Tensor]:
    """Of activations and distances."""
    generator = torch.Generator().manual_seed(5)
    shape = found.distances.shape
    return (
        torch.randn(shape, generator=generator).to(found.activations),
        torch.randn(shape, generator=generator).to(found.distances),
    )


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def in_double(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        argument.double()
        if isinstance(argument, Tensor) and argument.is_floating_point()
        else argument
        for argument in arguments
    )


@pytest.mark.parametrize(("metric", "similarity"), PAIRS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_within_1e_6(
    implementation: Implementation, shape: Shape, metric: str, similarity: str
) -> None:
    features, prototypes = random_problem(shape, device=implementation.device)
    if metric == "cosine" and shape.depth == 1:
        pytest.skip("the cosine of numbers is constant: nothing to compare")
    found = implementation.nearest_patch(features, prototypes, metric, similarity)
    arguments = (
        *random_gradients(found),
        features,
        prototypes,
        found.distances,
        found.locations,
        metric,
        similarity,
        EPS,
    )
    got = implementation.nearest_patch_backward(*arguments, True, True)
    expected = reference.nearest_patch_backward(*in_double(arguments))
    for a, b, like in zip(got, expected, (features, prototypes), strict=True):
        assert a.dtype == like.dtype
        assert a.shape == like.shape
        assert relative_error(a, b) <= 1e-6


def test_only_what_is_needed_and_given(implementation: Implementation) -> None:
    features, prototypes = random_problem(Shape(3, 20, 9, 4, 4), device=implementation.device)
    found = implementation.nearest_patch(features, prototypes)
    of_activations, of_distances = random_gradients(found)
    rest = (features, prototypes, found.distances, found.locations, "squared_l2", "log", EPS)
    both = implementation.nearest_patch_backward(of_activations, of_distances, *rest, True, True)
    only_features, nothing = implementation.nearest_patch_backward(
        of_activations, of_distances, *rest, True, False
    )
    assert nothing.shape == (0,)
    assert torch.equal(only_features, both[0])
    nothing, only_prototypes = implementation.nearest_patch_backward(
        of_activations, of_distances, *rest, False, True
    )
    assert nothing.shape == (0,)
    assert torch.equal(only_prototypes, both[1])
    zero = torch.zeros_like(of_distances)
    for given, same in (
        ((of_activations, None), (of_activations, zero)),
        ((None, of_distances), (zero, of_distances)),
    ):
        got = implementation.nearest_patch_backward(*given, *rest, True, True)
        expected = implementation.nearest_patch_backward(*same, *rest, True, True)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("metric", ["squared_l2", "l2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_gradient_is_zero_at_distance_zero(
    implementation: Implementation, dtype: torch.dtype, metric: str
) -> None:
    """Where the log-similarity has slope -1e4, and the root has none."""
    features, prototypes = random_problem(
        Shape(1, 49, 128, 7, 7), dtype=dtype, device=implementation.device
    )
    put_patches_into_prototypes(features, prototypes)
    found = implementation.nearest_patch(features, prototypes, metric)
    assert (found.distances == 0).all()
    got = implementation.nearest_patch_backward(
        *random_gradients(found),
        features,
        prototypes,
        found.distances,
        found.locations,
        metric,
        "log",
        EPS,
        True,
        True,
    )
    for tensor in got:
        assert (tensor == 0).all()


def test_cosine_gradient_of_zero_vectors_is_zero(implementation: Implementation) -> None:
    features, prototypes = random_problem(Shape(2, 5, 8, 1, 1), device=implementation.device)
    features[0] = 0
    prototypes[3] = 0
    found = implementation.nearest_patch(features, prototypes, "cosine", "linear")
    of_features, of_prototypes = implementation.nearest_patch_backward(
        *random_gradients(found),
        features,
        prototypes,
        found.distances,
        found.locations,
        "cosine",
        "linear",
        EPS,
        True,
        True,
    )
    assert of_features.isfinite().all()
    assert of_prototypes.isfinite().all()
    assert (of_features[0] == 0).all()
    assert (of_prototypes[3] == 0).all()
    assert (of_features[1] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits_in_their_own_layout(
    implementation: Implementation, layout: str, dtype: torch.dtype
) -> None:
    features, prototypes = random_problem(
        Shape(3, 40, 12, 5, 4), dtype=dtype, device=implementation.device
    )
    prototypes = prototypes.float()
    found = implementation.nearest_patch(features, prototypes)
    rest = (prototypes, found.distances, found.locations, "squared_l2", "log", EPS, True, True)
    gradients = random_gradients(found)
    expected = implementation.nearest_patch_backward(*gradients, features, *rest)
    same = LAYOUTS[layout](features)
    got = implementation.nearest_patch_backward(*gradients, same, *rest)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert got[0].stride() == torch.empty_like(same).stride()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_neither_threads_nor_the_batch_change_a_bit(
    implementation: Implementation, layout: str, metric: str, two_threads: None
) -> None:
    features, prototypes = random_problem(Shape(13, 150, 70, 7, 7), device=implementation.device)
    features = LAYOUTS[layout](features)
    found = implementation.nearest_patch(features, prototypes, metric, "linear")
    gradients = random_gradients(found)

    def backward(some: slice) -> tuple[Tensor, Tensor]:
        return implementation.nearest_patch_backward(
            gradients[0][some],
            gradients[1][some],
            features[some],
            prototypes,
            found.distances[some],
            found.locations[some],
            metric,
            "linear",
            EPS,
            True,
            True,
        )

    everything = slice(None)
    expected = backward(everything)
    for threads in (2, 1, 3):
        torch.set_num_threads(threads)
        for a, b in zip(backward(everything), expected, strict=True):
            assert torch.equal(a, b)
    parts = [backward(slice(n, n + 4))[0] for n in range(0, 13, 4)]
    assert torch.equal(torch.cat(parts), expected[0])


def test_all_prototypes_at_one_location(implementation: Implementation) -> None:
    """A sum over all prototypes: within rounding of what was added, signs and all."""
    features, prototypes = random_problem(Shape(2, 2000, 16, 7, 7), device=implementation.device)
    features.flatten(2)[..., 1:] += 10
    found = implementation.nearest_patch(features, prototypes)
    assert (found.locations == 0).all()
    gradients = random_gradients(found)
    options = ("squared_l2", "log", EPS)
    rest = (features, prototypes, found.distances, found.locations, *options)
    got, _ = implementation.nearest_patch_backward(*gradients, *rest, True, False)
    expected, _ = reference.nearest_patch_backward(*in_double((*gradients, *rest)))
    slopes = gradients[1] + gradients[0] * reference.similarity_derivative(
        found.distances, "log", EPS
    )
    patches = features[..., 0, 0].unsqueeze(1)  # [N, 1, D]
    added = (2 * slopes.unsqueeze(2) * (patches - prototypes)).abs().sum(1)  # [N, D]
    assert ((got - expected)[..., 0, 0].abs() <= 1e-6 * added).all()
    assert (got.flatten(2)[..., 1:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_are_rounded_once_and_as_torch_does(
    implementation: Implementation, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (50000,), generator=generator).to(torch.int32)
    halfway = (torch.arange(65536, dtype=torch.int32) << 16) + 0x8000  # between two bfloat16
    between = (torch.arange(65536, dtype=torch.int32) << 13) + 0x1000 + (112 << 23)  # two float16
    slopes = torch.cat([bits, halfway, between]).view(torch.float32).to(implementation.device)
    count = len(slopes)  # prototype i wins at location i
    features = torch.zeros(1, 1, count, 1, dtype=dtype, device=implementation.device)
    locations = torch.arange(count, device=implementation.device).view(1, count)
    got, _ = implementation.nearest_patch_backward(
        None,
        slopes.view(1, count),
        features,
        features.new_ones(count, 1),
        torch.zeros(1, count, device=implementation.device),
        locations,
        "dot",
        "linear",
        EPS,
        True,
        False,
    )
    torch.testing.assert_close(got.flatten(), -slopes.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("metric", METRICS)
def test_nan_stays_in_its_image(implementation: Implementation, metric: str) -> None:
    features, prototypes = random_problem(Shape(3, 10, 8, 4, 4), device=implementation.device)
    features[1, 2, 0, 3] = math.nan
    found = implementation.nearest_patch(features, prototypes, metric, "linear")
    of_features, _ = implementation.nearest_patch_backward(
        *random_gradients(found),
        features,
        prototypes,
        found.distances,
        found.locations,
        metric,
        "linear",
        EPS,
        True,
        False,
    )
    assert of_features[0::2].isfinite().all()
    others = of_features[1].flatten(1)
    assert (torch.cat([others[:, :3], others[:, 4:]], 1) == 0).all()


@pytest.mark.parametrize("wrong", [-1, 16, 2**40])
def test_locations_outside_the_map_are_refused(implementation: Implementation, wrong: int) -> None:
    if implementation.device.type == "cuda":
        pytest.skip("looking at locations would stop the host")
    features, prototypes = random_problem(Shape(3, 10, 8, 4, 4))
    found = implementation.nearest_patch(features, prototypes)
    found.locations[2, 9] = wrong
    with pytest.raises((RuntimeError, IndexError), match=r"locations must lie in \[0, 16\)"):
        implementation.nearest_patch_backward(
            None,
            found.distances,
            features,
            prototypes,
            found.distances,
            found.locations,
            "squared_l2",
            "log",
            EPS,
            True,
            True,
        )


@pytest.mark.parametrize(("images", "prototypes"), [(0, 3), (3, 0), (0, 0)])
def test_empty(implementation: Implementation, images: int, prototypes: int) -> None:
    shape = Shape(images, prototypes, 4, 2, 2)
    features, others = random_problem(shape, device=implementation.device)
    found = implementation.nearest_patch(features, others)
    got = implementation.nearest_patch_backward(
        found.activations,
        None,
        features,
        others,
        found.distances,
        found.locations,
        "squared_l2",
        "log",
        EPS,
        True,
        True,
    )
    for a, like in zip(got, (features, others), strict=True):
        assert torch.equal(a, torch.zeros_like(like))
