"""The numerics contract of `nearest_patch`, point by point, on every device and dtype.

Each point is a property of random problems: odd sizes and layouts, offsets, duplicated patches,
projected prototypes, NaN and infinities. Truth is float64 arithmetic on the same inputs.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from cases import LAYOUTS, PAIRS, check_against_truth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from implementations import EPS, Implementation
from torch import Tensor

from protofast.ops import NearestPatch, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)

Test = Callable[..., None]


def property_of(**strategies: st.SearchStrategy[object]) -> Callable[[Test], Test]:
    chosen = settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    return lambda test: chosen(given(**strategies)(test))


class Problem:
    """Random features [N, D, H, W], in one of the layouts, and prototypes [P, D]."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.seed = draw(st.integers(0, 2**31))
        self.images = draw(st.integers(1, 4))
        self.count = draw(st.integers(1, 40))
        self.depth = draw(st.integers(1, 40) | st.sampled_from([127, 128, 129, 300]))
        self.grid = (draw(st.integers(1, 8)), draw(st.integers(1, 8)))
        self.layout = draw(st.sampled_from(sorted(LAYOUTS)))
        # Multiples of 1/8 below 1, plus the offset: exact in every dtype, sums of squares in float.
        self.offset = draw(st.sampled_from([0.0, 0.0, -3.0]))
        self.duplicates = draw(st.booleans())
        self.projected = draw(st.integers(0, 3))

    def tensors(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.images, self.depth, *self.grid)
        features = torch.randint(0, 8, shape, generator=generator) / 8 + self.offset
        prototypes = (
            torch.randint(0, 8, (self.count, self.depth), generator=generator) / 8 + self.offset
        )
        flat = features.flatten(2)
        if self.duplicates:
            half = flat.shape[2] // 2
            flat[..., flat.shape[2] - half :] = flat[..., :half]
        for p in range(min(self.projected, self.count)):
            prototypes[p] = flat[p % self.images, :, p % flat.shape[2]]
        features = LAYOUTS[self.layout](flat.view(shape).to(device, dtype))
        return features, prototypes.to(device, dtype)

    def __repr__(self) -> str:
        return str(vars(self))


problems = st.composite(lambda draw: Problem(draw))()
pairs = st.sampled_from(PAIRS)


def patches(features: Tensor) -> Tensor:
    return features.flatten(2).mT  # [N, L, D]


def at_locations(features: Tensor, found: NearestPatch) -> Tensor:
    index = found.locations.unsqueeze(2).expand(-1, -1, features.shape[1])
    return patches(features).gather(1, index)  # [N, P, D]


def as_one_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@property_of(problem=problems, pair=pairs)
def test_1_results_are_float32_or_float64(
    implementation: Implementation, dtype: torch.dtype, problem: Problem, pair: tuple[str, str]
) -> None:
    features, prototypes = problem.tensors(dtype, implementation.device)
    found = implementation.nearest_patch(features, prototypes, *pair)
    wanted = as_one_dtype(features)
    assert (found.activations.dtype, found.distances.dtype) == (wanted, wanted)
    assert found.locations.dtype == torch.int64
    assert {part.shape for part in found} == {(problem.images, problem.count)}


@property_of(problem=problems)
def test_2_a_projected_patch_has_distance_0_and_nothing_is_negative_or_nan(
    implementation: Implementation, dtype: torch.dtype, problem: Problem
) -> None:
    features, prototypes = problem.tensors(dtype, implementation.device)
    found = implementation.nearest_patch(features, prototypes)
    largest = torch.tensor(math.log(1 / EPS), dtype=found.activations.dtype).item()
    for p in range(min(problem.projected, problem.count)):
        assert found.distances[p % problem.images, p].item() == 0.0
        assert found.activations[p % problem.images, p].item() == largest
    assert (found.distances >= 0).all()
    assert found.activations.isfinite().all()


@property_of(problem=problems, pair=pairs, exponent=st.floats(-10, 0))
def test_3_errors_are_bounded_at_every_distance(
    implementation: Implementation,
    dtype: torch.dtype,
    problem: Problem,
    pair: tuple[str, str],
    exponent: float,
) -> None:
    """Prototypes from 1e-10 of the norms away from a patch to as far as the norms."""
    features, prototypes = problem.tensors(dtype, implementation.device)
    generator = torch.Generator().manual_seed(problem.seed)
    away = torch.randn(prototypes.shape, generator=generator, dtype=torch.float64)
    base = patches(features)[0, :1].double().cpu()
    norm = base.norm().clamp(min=1.0)
    away *= 10 ** (exponent / 2) * norm / away.norm(dim=1, keepdim=True).clamp(min=1e-3)
    prototypes = (base + away).to(prototypes)
    found = implementation.nearest_patch(features, prototypes, *pair)
    check_against_truth(found, features, prototypes, *pair, implementation)


@property_of(problem=problems, pair=pairs)
def test_4_the_least_distance_is_found_and_the_first_of_ties(
    implementation: Implementation, dtype: torch.dtype, problem: Problem, pair: tuple[str, str]
) -> None:
    """On these inputs squared distances and products are exact, so are ties."""
    features, prototypes = problem.tensors(dtype, implementation.device)
    found = implementation.nearest_patch(features, prototypes, *pair)
    check_against_truth(found, features, prototypes, *pair, implementation)
    if pair[0] != "cosine":
        metric = "squared_l2" if pair[0] == "l2" else pair[0]
        wide = features.double(), prototypes.double()
        _, _, locations = reference.nearest_patch(*wide, metric, "linear", EPS)
        assert torch.equal(found.locations, locations)


@property_of(problem=problems, pair=pairs)
def test_5_distances_and_activations_are_those_of_the_returned_location(
    implementation: Implementation, dtype: torch.dtype, problem: Problem, pair: tuple[str, str]
) -> None:
    features, prototypes = problem.tensors(dtype, implementation.device)
    found = implementation.nearest_patch(features, prototypes, *pair)
    winners = at_locations(features, found).double()
    exact = reference.pair_distance(winners, prototypes.double(), pair[0])
    norms = winners.square().sum(2) + prototypes.double().square().sum(1)
    scale = exact if pair[0] in ("squared_l2", "l2") else norms.clamp(min=1.0)
    error = (found.distances.double() - exact).abs()
    assert (error <= implementation.distance_tolerance * scale).all()
    similarity = reference.similarity(found.distances, pair[1], EPS)
    torch.testing.assert_close(found.activations, similarity, rtol=1e-6, atol=1e-6)


@property_of(problem=problems, pair=pairs)
def test_6_gradients_are_differences_at_the_location(
    implementation: Implementation, dtype: torch.dtype, problem: Problem, pair: tuple[str, str]
) -> None:
    features, prototypes = problem.tensors(dtype, implementation.device)
    found = implementation.nearest_patch(features, prototypes, *pair)
    generator = torch.Generator().manual_seed(problem.seed)
    shape = found.distances.shape
    grads = [
        torch.rand(shape, generator=generator).to(found.distances) for _ in range(2)
    ]  # of activations and distances
    got = implementation.nearest_patch_backward(
        *grads, features, prototypes, *found[1:], *pair, EPS, True, True
    )
    winners = at_locations(features, found).double()
    exact = reference.pair_distance(winners, prototypes.double(), pair[0])
    expected = reference.nearest_patch_backward(
        *(grad.double() for grad in grads),
        features.double(),
        prototypes.double(),
        exact,
        found.locations,
        *pair,
        EPS,
    )
    rounding = {torch.float16: 2**-11, torch.bfloat16: 2**-8}.get(dtype, 0.0)
    for ours, wanted in zip(got, expected, strict=True):
        assert ours.dtype == dtype
        ours = ours.double()
        bound = 1e-6 * wanted.norm() + 1e-12  # all gradients 0: all patches equal their prototypes
        if rounding:  # the result is rounded once, to the dtype of the input
            bound = bound + 2 * rounding * wanted.norm() + 1e-7 * math.sqrt(wanted.numel())
        error = (ours - wanted)[ours.isfinite()].norm()
        assert error <= bound
        assert (wanted[~ours.isfinite()].abs() > 6e4).all()  # beyond float16


@property_of(problem=problems, pair=pairs)
def test_7_the_same_bits_every_time_for_any_threads_and_in_any_batch(
    implementation: Implementation,
    dtype: torch.dtype,
    two_threads: None,
    problem: Problem,
    pair: tuple[str, str],
) -> None:
    features, prototypes = problem.tensors(dtype, implementation.device)
    torch.set_num_threads(1)
    found = implementation.nearest_patch(features, prototypes, *pair)
    torch.set_num_threads(2)
    again = implementation.nearest_patch(features, prototypes, *pair)
    last = implementation.nearest_patch(features[-1:], prototypes, *pair)
    for one, two, alone in zip(found, again, last, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one[-1:], alone)


@contextmanager
def tf32_everywhere() -> Iterator[None]:
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[1:]


@property_of(problem=problems, pair=pairs)
def test_8_precision_follows_no_switch_of_pytorch(
    implementation: Implementation, dtype: torch.dtype, problem: Problem, pair: tuple[str, str]
) -> None:
    features, prototypes = problem.tensors(dtype, implementation.device)
    found = implementation.nearest_patch(features, prototypes, *pair)
    with tf32_everywhere():
        again = implementation.nearest_patch(features, prototypes, *pair)
    for one, two in zip(found, again, strict=True):
        assert torch.equal(one, two)


@property_of(problem=problems, pair=pairs, bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_9_nan_and_infinities_stay_in_their_image(
    implementation: Implementation,
    dtype: torch.dtype,
    problem: Problem,
    pair: tuple[str, str],
    bad: float,
) -> None:
    features, prototypes = problem.tensors(dtype, implementation.device)
    spoilt = features.clone()
    spoilt[0, problem.depth // 2, -1, -1] = bad
    found = implementation.nearest_patch(spoilt, prototypes, *pair)
    clean = implementation.nearest_patch(features, prototypes, *pair)
    for one, two in zip(found, clean, strict=True):
        assert torch.equal(one[1:], two[1:])
    if math.isnan(bad):
        assert found.distances[0].isnan().all()
        assert found.activations[0].isnan().all()
        assert (found.locations[0] == problem.grid[0] * problem.grid[1] - 1).all()
    elif pair[0] in ("squared_l2", "l2"):  # infinitely far: it wins where there is nothing else
        alone = problem.grid == (1, 1)
        assert bool(found.distances[0].isinf().all()) == alone
        assert not found.distances[0].isnan().any()


@property_of(problem=problems, pair=pairs)
def test_10_translation_padding_permutations_and_constant_maps(
    implementation: Implementation, dtype: torch.dtype, problem: Problem, pair: tuple[str, str]
) -> None:
    features, prototypes = problem.tensors(dtype, implementation.device)
    found = implementation.nearest_patch(features, prototypes, *pair)
    tolerance = implementation.distance_tolerance
    between = 1e-6 if implementation.refines_always else 2 * tolerance  # of two results

    if pair[0] in ("squared_l2", "l2"):
        far = 96.0 if dtype in (torch.float32, torch.float64) else 4.0  # exact in the dtype
        if torch.equal((features + far) - far, features):
            moved = implementation.nearest_patch(features + far, prototypes + far, *pair)
            assert torch.equal(moved.locations, found.locations)
            torch.testing.assert_close(moved.distances, found.distances, rtol=between, atol=0)

    padded = [torch.nn.functional.pad(features, (0, 0, 0, 0, 0, 3))]
    padded.append(torch.nn.functional.pad(prototypes, (0, 3)))
    wider = implementation.nearest_patch(padded[0], padded[1], *pair)
    torch.testing.assert_close(wider.distances, found.distances, rtol=tolerance, atol=tolerance)
    if pair[0] != "cosine":
        assert torch.equal(wider.locations, found.locations)

    images = torch.arange(problem.images - 1, -1, -1, device=features.device)
    order = torch.arange(problem.count - 1, -1, -1, device=features.device)
    swapped = implementation.nearest_patch(features[images], prototypes[order], *pair)
    for one, two in zip(swapped, found, strict=True):
        if implementation.refines_always or one.dtype == torch.int64:
            assert torch.equal(one, two[images][:, order])
        else:  # the prototypes' order is in the rounding of distances that are not refined
            torch.testing.assert_close(one, two[images][:, order], rtol=between, atol=between)

    mirrored = implementation.nearest_patch(features.flip(2, 3), prototypes, *pair)
    torch.testing.assert_close(mirrored.distances, found.distances, rtol=tolerance, atol=tolerance)

    constant = features[:, :, :1, :1].expand_as(features)
    assert (implementation.nearest_patch(constant, prototypes, *pair).locations == 0).all()
