"""The forward contract, for every implementation: exactness, ties, NaN, layouts, dtypes, bits."""

import math

import pytest
import torch
from cases import (
    EPS,
    LAYOUTS,
    METRICS,
    PAIRS,
    SHAPES,
    Shape,
    check_against_truth,
    put_patches_into_prototypes,
    random_problem,
    truth,
)
from implementations import CompiledCpu, Implementation
from torch import Tensor

from protofast.ops import NearestPatch, reference

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def assert_same(got: NearestPatch, expected: NearestPatch) -> None:
    """Bit for bit, NaN equal to NaN."""
    for name, a, b in zip(got._fields, got, expected, strict=True):
        assert torch.equal(a.nan_to_num(nan=7e7), b.nan_to_num(nan=7e7)), name


def assert_same_distances(implementation: Implementation, got: Tensor, expected: Tensor) -> None:
    """Whatever the other prototypes are: a distance that is not refined knows their centre."""
    if implementation.refines_always:
        assert torch.equal(got, expected)
    else:
        torch.testing.assert_close(got, expected, rtol=implementation.distance_tolerance, atol=0)


@pytest.mark.parametrize(("metric", "similarity"), PAIRS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_the_error_bounds(
    implementation: Implementation, shape: Shape, metric: str, similarity: str
) -> None:
    features, prototypes = random_problem(shape, device=implementation.device)
    found = implementation.nearest_patch(features, prototypes, metric, similarity)
    assert found.distances.dtype == found.activations.dtype == torch.float32
    assert found.locations.dtype == torch.int64
    check_against_truth(found, features, prototypes, metric, similarity, implementation)


@pytest.mark.parametrize("metric", ["squared_l2", "l2"])
@pytest.mark.parametrize("depth", [16, 128, 512])
def test_distances_from_nearly_zero_to_the_norms(
    implementation: Implementation, depth: int, metric: str
) -> None:
    features, prototypes = random_problem(Shape(4, 200, depth, 7, 7), device=implementation.device)
    images, locations = put_patches_into_prototypes(features, prototypes)
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(prototypes.shape, generator=generator).to(prototypes)
    directions /= directions.square().sum(1, keepdim=True).sqrt()
    relative = torch.logspace(-10, 0, 200).to(prototypes)  # of the squared norms
    norms = 2 * prototypes.square().sum(1)
    prototypes += directions * (relative * norms).sqrt().unsqueeze(1)
    found = implementation.nearest_patch(features, prototypes, metric)
    check_against_truth(found, features, prototypes, metric, "log", implementation)
    near = relative < 1e-3
    own = found.locations[images, torch.arange(200, device=images.device)]
    assert torch.equal(own[near], locations[near])


@pytest.mark.parametrize("metric", METRICS)
def test_error_at_most_twice_that_of_pytorch(implementation: Implementation, metric: str) -> None:
    if not implementation.refines_always:
        pytest.skip("distances far from zero are not refined; refine='always' is held to this")
    similarity = "log" if metric.endswith("l2") else "linear"
    shape = Shape(4, 100, 128, 7, 7)
    features, prototypes = random_problem(shape, seed=3, device=implementation.device)
    found = implementation.nearest_patch(features, prototypes, metric, similarity)
    plain = reference.nearest_patch(features, prototypes, metric, similarity, EPS)
    exact = truth(features, prototypes, metric).least
    for got, torchs, expected in (
        (found.distances, plain[1], exact),
        (found.activations, plain[0], reference.similarity(exact, similarity, EPS)),
    ):
        error, limit = (got.double() - expected).abs(), (torchs.double() - expected).abs()
        assert error.mean() <= 2 * limit.mean()
        assert error.max() <= 2 * limit.max()


@pytest.mark.parametrize("metric", ["squared_l2", "l2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [1, 3, 64, 130, 512])
def test_a_projected_patch_has_distance_zero(
    implementation: Implementation, depth: int, dtype: torch.dtype, metric: str
) -> None:
    shape = Shape(3, 70, depth, 7, 7)
    features, prototypes = random_problem(shape, dtype=dtype, device=implementation.device)
    if dtype != torch.float64:
        prototypes = prototypes.float()  # as a model keeps them; its features are narrower
    images, locations = put_patches_into_prototypes(features, prototypes)
    found = implementation.nearest_patch(features, prototypes, metric)
    own = (images, torch.arange(70, device=images.device))
    assert (found.distances[own] == 0).all()
    highest = torch.tensor(math.log(1 / EPS), dtype=found.activations.dtype)
    assert (found.activations[own] == highest.to(found.activations)).all()
    if depth >= 64:
        assert torch.equal(found.locations[own], locations)


@pytest.mark.parametrize("eps", [1e-12, 1e-4, 0.3])
def test_activation_at_distance_zero_is_log_of_one_over_eps(
    implementation: Implementation, eps: float
) -> None:
    for dtype in (torch.float32, torch.float64):
        features = torch.full((1, 3, 2, 2), 0.3, dtype=dtype, device=implementation.device)
        found = implementation.nearest_patch(features, features[:, :, 0, 0], eps=eps)
        expected = torch.tensor(math.log(1 / eps), dtype=dtype)
        assert found.activations.cpu() == expected


def test_the_first_of_duplicated_patches_wins(implementation: Implementation) -> None:
    features, prototypes = random_problem(Shape(3, 70, 33, 7, 7), device=implementation.device)
    flat = features.flatten(2)
    flat[..., 25:] = flat[..., :24]  # the second half repeats the first
    prototypes[:24] = flat[1, :, :24].t()
    found = implementation.nearest_patch(features, prototypes)
    assert (found.locations < 25).all()
    assert torch.equal(found.locations[1, :24].cpu(), torch.arange(24))
    flat[:] = 0.3
    for metric in METRICS:
        similarity = "linear"
        found = implementation.nearest_patch(features, prototypes, metric, similarity)
        assert (found.locations == 0).all()


@pytest.mark.parametrize("metric", ["squared_l2", "l2", "dot"])
@pytest.mark.parametrize("offset", [0, 1000])
def test_the_first_of_equal_distances_wins_though_the_patches_differ(
    implementation: Implementation, metric: str, offset: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(0, 4, (3, 6, 7, 7), generator=generator).float() + offset
    prototypes = torch.randint(0, 4, (70, 6), generator=generator).float() + offset
    features, prototypes = features.to(implementation.device), prototypes.to(implementation.device)
    found = implementation.nearest_patch(features, prototypes, metric, "linear")
    first = truth(features, prototypes, metric).maps.float().argmin(2)
    assert torch.equal(found.locations, first)


@pytest.mark.parametrize("metric", METRICS)
def test_nan_wins_in_its_image_and_nowhere_else(
    implementation: Implementation, metric: str
) -> None:
    features, prototypes = random_problem(Shape(3, 40, 20, 7, 7), device=implementation.device)
    before = implementation.nearest_patch(features, prototypes, metric, "linear")
    features[1, 7, 2, 3] = math.nan
    features[1, 3, 5, 0] = math.nan
    found = implementation.nearest_patch(features, prototypes, metric, "linear")
    assert found.distances[1].isnan().all()
    assert found.activations[1].isnan().all()
    assert (found.locations[1] == 2 * 7 + 3).all()
    for image in (0, 2):
        assert torch.equal(found.distances[image], before.distances[image])
        assert torch.equal(found.locations[image], before.locations[image])
    prototypes[5, 0] = math.nan
    found = implementation.nearest_patch(features, prototypes, metric, "linear")
    assert found.distances[:, 5].isnan().all()
    assert (found.locations[0::2, 5] == 0).all()
    assert_same_distances(implementation, found.distances[0, 6:], before.distances[0, 6:])


def test_infinite_and_overflowing_patches(implementation: Implementation) -> None:
    features, prototypes = random_problem(Shape(3, 40, 20, 7, 7), device=implementation.device)
    features[0, 3, 0] = math.inf
    features[1, 3, 1] = 1e25  # its square is infinite in float32
    features[2] = -math.inf
    for similarity in ("log", "exp"):
        found = implementation.nearest_patch(features, prototypes, "squared_l2", similarity)
        assert found.distances[:2].isfinite().all()
        assert (found.locations[0] >= 7).all()
        assert (found.distances[2] == math.inf).all()
        assert (found.activations[2] == 0).all()
        assert (found.locations[2] == 0).all()


def test_zero_vectors_have_cosine_zero(implementation: Implementation) -> None:
    features, prototypes = random_problem(Shape(2, 5, 8, 2, 2), device=implementation.device)
    features, prototypes = features - 2, prototypes + 1  # every cosine is negative
    features[0, :, 1, 0] = 0
    prototypes[3] = 0
    found = implementation.nearest_patch(features, prototypes, "cosine", "linear")
    assert (found.distances[0] == 0).all()
    assert (found.locations[0, :3] == 2).all()
    assert (found.locations[:, 3] == 0).all()
    assert (found.distances[1, :3] > 0).all()


@pytest.mark.parametrize("metric", ["squared_l2", "l2"])
@pytest.mark.parametrize("offset", [100.0, -1000.0])
def test_translation(implementation: Implementation, metric: str, offset: float) -> None:
    """Far from zero the expanded form picks the wrong patch in a third of the pairs."""
    features, prototypes = random_problem(Shape(3, 100, 128, 7, 7), device=implementation.device)
    features, prototypes = features + offset, prototypes + offset
    prototypes[0, 0] = 1e7  # one that spoils the mean of all
    found = implementation.nearest_patch(features, prototypes, metric)
    exact = truth(features, prototypes, metric)
    here = exact.maps.gather(2, found.locations.unsqueeze(2)).squeeze(2)
    assert (here <= exact.least * (1 + 1e-5)).all()
    error = (found.distances - here).abs()
    assert (error <= implementation.distance_tolerance * here).all()


@pytest.mark.parametrize("metric", METRICS)
def test_padding_the_depth_with_zeros_changes_nothing(
    implementation: Implementation, metric: str
) -> None:
    features, prototypes = random_problem(Shape(3, 40, 30, 5, 5), device=implementation.device)
    plain = implementation.nearest_patch(features, prototypes, metric, "linear")
    for more in (1, 2, 3, 200):
        wide = torch.nn.functional.pad(features, (0, 0, 0, 0, 0, more))
        padded = torch.nn.functional.pad(prototypes, (0, more))
        found = implementation.nearest_patch(wide, padded, metric, "linear")
        assert torch.equal(found.locations, plain.locations)
        tolerance = implementation.distance_tolerance
        torch.testing.assert_close(found.distances, plain.distances, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_permutations(implementation: Implementation, metric: str) -> None:
    features, prototypes = random_problem(Shape(4, 50, 30, 5, 5), device=implementation.device)
    plain = implementation.nearest_patch(features, prototypes, metric, "linear")
    generator = torch.Generator().manual_seed(0)
    images, others, cells = (
        torch.randperm(size, generator=generator).to(implementation.device) for size in (4, 50, 25)
    )
    found = implementation.nearest_patch(features[images], prototypes[others], metric, "linear")
    expected = plain.distances[images][:, others]
    assert_same_distances(implementation, found.distances, expected)
    assert torch.equal(found.locations, plain.locations[images][:, others])
    moved = features.flatten(2)[..., cells].view(features.shape)
    found = implementation.nearest_patch(moved, prototypes, metric, "linear")
    assert torch.equal(found.distances, plain.distances)
    assert torch.equal(cells[found.locations], plain.locations)


@pytest.mark.parametrize(
    ("images", "prototypes", "height", "width"),
    [(0, 3, 2, 2), (3, 0, 2, 2), (0, 0, 1, 1), (2, 3, 1, 1)],
)
def test_empty_and_smallest(
    implementation: Implementation, images: int, prototypes: int, height: int, width: int
) -> None:
    shape = Shape(images, prototypes, 4, height, width)
    found = implementation.nearest_patch(*random_problem(shape, device=implementation.device))
    assert all(tensor.shape == (images, prototypes) for tensor in found)
    if height == 1:
        assert (found.locations == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(
    implementation: Implementation, layout: str, dtype: torch.dtype
) -> None:
    features, prototypes = random_problem(
        Shape(3, 40, 12, 5, 4), dtype=dtype, device=implementation.device
    )
    prototypes = prototypes.float()
    same = LAYOUTS[layout](features)
    assert torch.equal(same, features)
    expected = implementation.nearest_patch(features, prototypes)
    assert_same(implementation.nearest_patch(same, prototypes), expected)
    columns = prototypes.t().contiguous().t()
    assert_same(implementation.nearest_patch(same, columns), expected)


@pytest.mark.parametrize("of_features", DTYPES, ids=str)
@pytest.mark.parametrize("of_prototypes", DTYPES, ids=str)
def test_mixed_dtypes_compute_as_if_converted_first(
    implementation: Implementation, of_features: torch.dtype, of_prototypes: torch.dtype
) -> None:
    features, prototypes = random_problem(Shape(2, 20, 33, 3, 3), device=implementation.device)
    features, prototypes = features.to(of_features), prototypes.to(of_prototypes)
    wide = torch.float64 if torch.float64 in (of_features, of_prototypes) else torch.float32
    found = implementation.nearest_patch(features, prototypes)
    assert found.distances.dtype == wide
    expected = implementation.nearest_patch(features.to(wide), prototypes.to(wide))
    if implementation.device.type == "cuda":  # narrow inputs need fewer tensor-core products
        torch.testing.assert_close(found.distances, expected.distances, rtol=1e-4, atol=0)
    else:
        assert_same(found, expected)


def every_half() -> Tensor:
    """All 65,536 values of 16 bits."""
    return torch.arange(65536, dtype=torch.int32).to(torch.int16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_value_is_read_exactly(
    implementation: Implementation, dtype: torch.dtype
) -> None:
    if not implementation.refines_always:
        pytest.skip("the product of tensor cores is rounded; refine='always' is held to this")
    features = every_half().view(dtype).view(-1, 1, 1, 1).to(implementation.device)
    found = implementation.nearest_patch(
        features, features.new_ones((1, 1), dtype=torch.float32), "dot", "linear"
    )
    expected = -features.float().flatten()
    assert_same(
        NearestPatch(found.activations, found.distances.flatten(), found.locations),
        NearestPatch(-expected.view(-1, 1), expected, torch.zeros_like(found.locations)),
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_neither_threads_nor_the_batch_change_a_bit(
    implementation: Implementation, dtype: torch.dtype, metric: str, two_threads: None
) -> None:
    features, prototypes = random_problem(
        Shape(13, 150, 70, 7, 7), dtype=dtype, device=implementation.device
    )
    features[3, 0, 0, 0] = math.nan
    expected = implementation.nearest_patch(features, prototypes, metric, "linear")
    assert_same(implementation.nearest_patch(features, prototypes, metric, "linear"), expected)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found = implementation.nearest_patch(features, prototypes, metric, "linear")
        assert_same(found, expected)
    for size in (1, 2, 5):
        parts = [
            implementation.nearest_patch(some, prototypes, metric, "linear")
            for some in features.split(size)
        ]
        assert_same(
            NearestPatch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))), expected
        )


@pytest.mark.parametrize("metric", METRICS)
def test_it_is_the_minimum_of_the_distance_map(implementation: Implementation, metric: str) -> None:
    features, prototypes = random_problem(Shape(3, 70, 130, 7, 7), device=implementation.device)
    put_patches_into_prototypes(features, prototypes)
    found = implementation.nearest_patch(features, prototypes, metric, "linear")
    maps = implementation.distance_map(features, prototypes, None, metric).flatten(2)
    at_location = maps.gather(2, found.locations.unsqueeze(2)).squeeze(2)
    tolerance = implementation.distance_tolerance
    torch.testing.assert_close(found.distances, at_location, rtol=tolerance, atol=1e-6)
    torch.testing.assert_close(found.distances, maps.amin(2), rtol=tolerance, atol=1e-6)
    if isinstance(implementation, CompiledCpu):  # the same code computes both
        assert torch.equal(found.distances, at_location)
