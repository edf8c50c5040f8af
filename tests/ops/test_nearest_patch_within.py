"""`nearest_patch_within`: of `nearest_patch`, the same bits for exactly the pairs within limits."""

import pytest
import torch
from cases import LAYOUTS, METRICS, SHAPES, Shape, put_patches_into_prototypes, random_problem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from implementations import Implementation
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from protofast.ops import NearPairs, nearest_patch, nearest_patch_within


def expected_pairs(
    implementation: Implementation,
    features: Tensor,
    prototypes: Tensor,
    limits: Tensor,
    metric: str = "squared_l2",
) -> list[tuple[int, int, float, int]]:
    """By the definition, pair by pair; NaN as a word, so that it equals itself."""
    found = implementation.nearest_patch(features, prototypes, metric, "linear")
    pairs = []
    for n, row in enumerate(found.distances.tolist()):
        for p, (distance, limit) in enumerate(zip(row, limits.tolist(), strict=True)):
            if distance <= limit or distance in (torch.inf, -torch.inf) or distance != distance:
                pairs.append((n, p, distance, int(found.locations[n, p])))
    return [(n, p, repr(d), location) for n, p, d, location in pairs]


def listed(found: NearPairs) -> list[tuple[int, int, str, int]]:
    rows = zip(*(part.tolist() for part in found), strict=True)
    return [(n, p, repr(d), location) for n, p, d, location in rows]


def some_limits(
    implementation: Implementation, features: Tensor, prototypes: Tensor, metric: str
) -> Tensor:
    """For each prototype the distance of some image exactly, so that it is the last to pass."""
    distances = implementation.nearest_patch(features, prototypes, metric, "linear").distances
    which = torch.arange(len(prototypes), device=features.device)
    limits = distances[which % len(features), which].double().nan_to_num(nan=1.0)
    limits[::5] = torch.nextafter(limits[::5], torch.tensor(-torch.inf).to(limits))
    for start, value in ((3, torch.inf), (6, torch.nan), (11, -torch.inf), (14, 0.0)):
        limits[start::16] = value
    return limits


def check(
    implementation: Implementation, features: Tensor, prototypes: Tensor, metric: str = "squared_l2"
) -> None:
    limits = some_limits(implementation, features, prototypes, metric)
    found = implementation.nearest_patch_within(features, prototypes, limits, metric)
    assert listed(found) == expected_pairs(implementation, features, prototypes, limits, metric)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_the_pairs_within_the_limits(
    implementation: Implementation, shape: Shape, metric: str
) -> None:
    check(implementation, *random_problem(shape, device=implementation.device), metric)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_dtypes(
    implementation: Implementation, layout: str, dtype: torch.dtype
) -> None:
    shape = Shape(3, 37, 130, 3, 4)
    features, prototypes = random_problem(shape, dtype=dtype, device=implementation.device)
    put_patches_into_prototypes(features, prototypes)
    check(implementation, LAYOUTS[layout](features), prototypes)
    check(implementation, LAYOUTS[layout](features.float()), prototypes, "l2")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30, 1e-30, 1e-42, 0.0])
def test_ugly_numbers(implementation: Implementation, number: float) -> None:
    shape = Shape(4, 19, 20, 3, 3)
    features, prototypes = random_problem(shape, device=implementation.device)
    features[2, 3, 1, 2] = number
    features[3, :, 0, 1] = number
    check(implementation, features, prototypes)
    prototypes[4, 0] = number
    prototypes[7] = number
    check(implementation, features, prototypes)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_numbers(implementation: Implementation, data: st.DataObject) -> None:
    """The first look may be of little use, but never wrong."""
    draw = data.draw
    n, p = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    depth = draw(st.integers(1, 40) | st.sampled_from([63, 64, 128, 257]))
    height, width = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    features = torch.rand(n, depth, height, width, generator=generator, dtype=torch.float64)
    prototypes = torch.rand(p, depth, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        features, prototypes = (4 * features).floor(), (4 * prototypes).floor()
    if draw(st.booleans()):  # channels of very different size
        sizes = 10 ** (8 * torch.rand(depth, generator=generator) - 4).double()
        features, prototypes = features * sizes[:, None, None], prototypes * sizes
    offsets = st.sampled_from([0.0, 0.0, 100.0, -3.0, 1e5])
    features, prototypes = features + draw(offsets), prototypes + draw(offsets)
    scales = st.sampled_from([1.0, 1.0, 1e-3, 1e-8, 1e-42, 1e8, 1e18, 1e30])
    features = features * draw(scales)
    prototypes = prototypes * draw(scales)
    dtypes = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64])
    features, prototypes = features.to(draw(dtypes)), prototypes.to(draw(dtypes))
    features, prototypes = features.to(implementation.device), prototypes.to(implementation.device)
    if draw(st.booleans()):
        features[:] = features[:, :, :1, :1]
    if draw(st.booleans()):
        prototypes[p // 2 :] = features[0, :, 0, 0]
    check(implementation, features, prototypes, draw(st.sampled_from(["squared_l2", "l2"])))


def test_neither_threads_nor_the_batch_change_a_bit(
    implementation: Implementation, two_threads: None
) -> None:
    features, prototypes = random_problem(Shape(35, 70, 24, 5, 5), device=implementation.device)
    limits = some_limits(implementation, features, prototypes, "squared_l2")
    together = listed(implementation.nearest_patch_within(features, prototypes, limits))
    torch.set_num_threads(1)
    assert listed(implementation.nearest_patch_within(features, prototypes, limits)) == together
    alone = listed(implementation.nearest_patch_within(features[33:34], prototypes, limits))
    assert alone == [(0, *row[1:]) for row in together if row[0] == 33]


@pytest.mark.parametrize(("images", "prototypes"), [(0, 0), (0, 3), (2, 0)])
def test_empty(implementation: Implementation, images: int, prototypes: int) -> None:
    shape = Shape(images, prototypes, 4, 2, 2)
    problem = random_problem(shape, device=implementation.device)
    limits = torch.ones(prototypes, dtype=torch.float64, device=implementation.device)
    found = implementation.nearest_patch_within(*problem, limits)
    assert all(part.shape == (0,) for part in found)


# ------------------------------------------------------------------ inside PyTorch


def problem_with_limits(**options: object) -> tuple[Tensor, Tensor, Tensor]:
    features, prototypes = random_problem(Shape(3, 10, 8, 4, 5), **options)  # type: ignore[arg-type]
    limits = nearest_patch(features, prototypes).distances.double().median(dim=0).values
    return features, prototypes, limits


def test_opcheck() -> None:
    features, prototypes, limits = problem_with_limits()
    half = features.to(memory_format=torch.channels_last).bfloat16()
    for inputs in ((features, prototypes), (half, prototypes), (features[:0], prototypes)):
        torch.library.opcheck(
            torch.ops.protofast.nearest_patch_within.default, (*inputs, limits, "squared_l2")
        )


def test_fake_results() -> None:
    features, prototypes, limits = problem_with_limits(dtype=torch.float16)
    real = nearest_patch_within(features, prototypes, limits)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fake = nearest_patch_within(*(mode.from_tensor(x) for x in (features, prototypes, limits)))
    for a, b in zip(real, fake, strict=True):
        assert (a.dim(), a.dtype) == (b.dim(), b.dtype)


def test_it_has_no_gradient() -> None:
    features, prototypes, limits = problem_with_limits()
    found = nearest_patch_within(features.requires_grad_(), prototypes, limits)
    with pytest.raises(RuntimeError, match="nearest_patch_within has no gradient"):
        found.distances.sum().backward()


def test_prototypes_of_several_patches() -> None:
    features, _ = random_problem(Shape(6, 1, 8, 7, 6))
    prototypes = torch.rand(40, 8, 2, 3, generator=torch.Generator().manual_seed(1))
    _, distances, locations = nearest_patch(features, prototypes)
    limits = distances[torch.arange(40) % 6, torch.arange(40)].double()
    found = nearest_patch_within(features, prototypes, limits)
    near = distances <= limits
    assert torch.equal(torch.stack(found[:2], dim=1), near.nonzero())
    assert torch.equal(found.distances, distances[near])
    assert torch.equal(found.locations, locations[near])


def test_arguments_are_checked() -> None:
    features, prototypes, limits = problem_with_limits()
    with pytest.raises(TypeError, match=r"limits must be a float64 tensor; got torch.float32"):
        nearest_patch_within(features, prototypes, limits.float())
    with pytest.raises(ValueError, match=r"limits must be \[P\] with P = 10; got \[9\]"):
        nearest_patch_within(features, prototypes, limits[1:])
    with pytest.raises(ValueError, match="metric must be one of"):
        nearest_patch_within(features, prototypes, limits, metric="l1")
    with pytest.raises(ValueError, match="same depth D; got 8 and 7"):
        nearest_patch_within(features, prototypes[:, 1:], limits)
