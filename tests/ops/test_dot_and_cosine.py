"""The largest projection and cosine: the two searches of nearest_patch, bit for bit, and more."""

import pytest
import torch
from cases import LAYOUTS, SHAPES, Shape, random_problem, truth
from implementations import Implementation
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from protofast.ops import DotAndCosine, decomposition, dot_and_cosine, nearest_patch, reference


def two_searches(
    implementation: Implementation, features: Tensor, prototypes: Tensor
) -> DotAndCosine:
    dots = implementation.nearest_patch(features, prototypes, "dot", "linear")
    cosines = implementation.nearest_patch(features, prototypes, "cosine", "linear")
    return DotAndCosine(dots.activations, dots.locations, cosines.activations, cosines.locations)


def assert_same(got: DotAndCosine, expected: DotAndCosine) -> None:
    """Bit for bit, NaN equal to NaN."""
    for name, a, b in zip(got._fields, got, expected, strict=True):
        assert torch.equal(a.nan_to_num(nan=7e7), b.nan_to_num(nan=7e7)), name


def signed_problem(shape: Shape, **options: object) -> tuple[Tensor, Tensor]:
    features, prototypes = random_problem(shape, **options)  # type: ignore[arg-type]
    return features - 0.5, prototypes - 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_the_error_bounds(implementation: Implementation, shape: Shape) -> None:
    features, prototypes = signed_problem(shape, device=implementation.device)
    found = implementation.dot_and_cosine(features, prototypes)
    assert found.dots.dtype == found.cosines.dtype == torch.float32
    for metric, values, locations in (("dot", *found[:2]), ("cosine", *found[2:])):
        exact = truth(features, prototypes, metric)
        here = exact.maps.gather(2, locations.unsqueeze(2)).squeeze(2)
        assert ((values.double() + here).abs() <= 1e-6 * exact.norms).all()
        assert (here - exact.least <= 1e-5 * exact.norms).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bits_of_two_searches(
    implementation: Implementation, layout: str, dtype: torch.dtype
) -> None:
    if implementation.device.type != "cpu":
        pytest.skip("on GPUs it is two searches")
    features, prototypes = signed_problem(Shape(3, 37, 130, 3, 4), dtype=dtype)
    prototypes[5] = features[2, :, 1, 1]
    features = LAYOUTS[layout](features)
    assert_same(
        implementation.dot_and_cosine(features, prototypes),
        two_searches(implementation, features, prototypes),
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30, 1e-30, 0.0])
def test_ugly_numbers_are_those_of_two_searches(
    implementation: Implementation, number: float
) -> None:
    features, prototypes = signed_problem(Shape(4, 19, 20, 3, 3), device=implementation.device)
    features[2, 3, 1, 2] = number
    features[3, :, 0, 1] = number
    prototypes[4, 0] = number
    prototypes[7] = number
    found = implementation.dot_and_cosine(features, prototypes)
    assert_same(found, two_searches(implementation, features, prototypes))
    if number == 0:
        assert (found.cosines[:, 7] == 0).all()


def test_ties_go_to_the_first_location(implementation: Implementation) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(-1, 2, (3, 4, 5, 5), generator=generator).to(
        implementation.device, torch.float32
    )
    prototypes = torch.randint(-1, 2, (21, 4), generator=generator).to(features)
    found = implementation.dot_and_cosine(features, prototypes)
    maps = truth(features, prototypes, "dot").maps
    assert torch.equal(found.dot_locations, maps.argmin(2))
    features[:] = 0.3
    found = implementation.dot_and_cosine(features, prototypes)
    assert (found.dot_locations == 0).all()
    assert (found.cosine_locations == 0).all()


def test_neither_threads_nor_the_batch_change_a_bit(
    implementation: Implementation, two_threads: None
) -> None:
    features, prototypes = signed_problem(Shape(35, 70, 24, 3, 3), device=implementation.device)
    together = implementation.dot_and_cosine(features, prototypes)
    torch.set_num_threads(1)
    assert_same(implementation.dot_and_cosine(features, prototypes), together)
    alone = implementation.dot_and_cosine(features[33:34], prototypes)
    assert_same(alone, DotAndCosine(*(part[33:34] for part in together)))


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("prototypes", [0, 3])
def test_empty(implementation: Implementation, images: int, prototypes: int) -> None:
    shape = Shape(images, prototypes, 4, 2, 2)
    found = implementation.dot_and_cosine(*random_problem(shape, device=implementation.device))
    assert all(part.shape == (images, prototypes) for part in found)


# ------------------------------------------------------------------ gradients, inside PyTorch


def wanting_gradients(tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return tensors[0].detach().requires_grad_(), tensors[1].detach().requires_grad_()


def both_values(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    found = dot_and_cosine(features, prototypes)
    return found.dots, found.cosines


def test_gradcheck() -> None:
    inputs = signed_problem(Shape(2, 5, 4, 3, 2), dtype=torch.float64, seed=1)
    assert torch.autograd.gradcheck(both_values, wanting_gradients(inputs))


@pytest.mark.parametrize("use", ["dots", "cosines"])
def test_gradients_of_one_of_them(use: str) -> None:
    problem = signed_problem(Shape(3, 12, 17, 4, 4))
    ours, theirs = wanting_gradients(problem), wanting_gradients(problem)
    getattr(dot_and_cosine(*ours), use).square().sum().backward()
    metric = "dot" if use == "dots" else "cosine"
    nearest_patch(*theirs, metric=metric, similarity="linear").distances.square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_gradients_in_half_precision_are_rounded_once() -> None:
    problem = signed_problem(Shape(3, 12, 17, 4, 4), dtype=torch.bfloat16)
    narrow = wanting_gradients(problem)
    wide = wanting_gradients((problem[0].float(), problem[1].float()))
    for inputs in (narrow, wide):
        dots, cosines = both_values(*inputs)
        (dots.sum() - cosines.square().sum()).backward()
    for a, b in zip(narrow, wide, strict=True):
        assert torch.equal(a.grad, b.grad.bfloat16())


def test_gradients_only_where_wanted() -> None:
    features, prototypes = signed_problem(Shape(3, 6, 8, 3, 3))
    prototypes.requires_grad_()
    found = dot_and_cosine(features, prototypes)
    assert not found.dot_locations.requires_grad
    found.dots[1, 2].backward()
    winner = features[1].flatten(1)[:, found.dot_locations[1, 2]]
    assert torch.equal(prototypes.grad[2], winner)
    assert prototypes.grad.count_nonzero() == winner.count_nonzero()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_opcheck() -> None:
    features, prototypes = signed_problem(Shape(3, 10, 8, 4, 5))
    for inputs in (
        (features, prototypes),
        (features.to(memory_format=torch.channels_last).bfloat16(), prototypes),
        random_problem(Shape(0, 4, 3, 2, 2)),
    ):
        torch.library.opcheck(torch.ops.protofast.dot_and_cosine.default, wanting_gradients(inputs))


def test_compiles_without_graph_breaks() -> None:
    torch.compiler.reset()
    compiled = torch.compile(both_values, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in (Shape(3, 10, 8, 4, 5), Shape(2, 7, 8, 6, 5)):
        problem = signed_problem(shape)
        ours, theirs = wanting_gradients(problem), wanting_gradients(problem)
        for function, inputs in ((compiled, ours), (both_values, theirs)):
            dots, cosines = function(*inputs)
            (dots.sum() - cosines.square().sum()).backward()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_fake_results_and_the_decomposition_for_export() -> None:
    features, prototypes = signed_problem(Shape(3, 10, 8, 4, 5), dtype=torch.float16)
    real = dot_and_cosine(features, prototypes)
    with FakeTensorMode() as mode:
        fake = dot_and_cosine(mode.from_tensor(features), mode.from_tensor(prototypes))
    replaced = decomposition.table()[torch.ops.protofast.dot_and_cosine.default]
    plain = DotAndCosine(*replaced(features, prototypes))  # type: ignore[misc]
    for a, b, c in zip(real, fake, plain, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        torch.testing.assert_close(a, c)


def test_prototypes_of_several_patches() -> None:
    features, _ = random_problem(Shape(2, 1, 3, 4, 5))
    prototypes = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    found = dot_and_cosine(features, prototypes)
    windows = features.unfold(2, 2, 1).unfold(3, 2, 1)  # [N, D, 3, 4, 2, 2]
    dots = torch.einsum("ndrcij,pdij->nprc", windows, prototypes).flatten(2)
    torch.testing.assert_close(found.dots, dots.amax(2))
    assert torch.equal(found.dot_locations, dots.argmax(2))


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="same depth D; got 3 and 4"):
        dot_and_cosine(torch.rand(2, 3, 4, 4), torch.rand(5, 4))
    with pytest.raises(TypeError, match="prototypes must be float16"):
        dot_and_cosine(torch.rand(2, 3, 4, 4), torch.ones(5, 3, dtype=torch.int64))


def test_it_is_what_tesnet_computes() -> None:
    features, prototypes = random_problem(Shape(3, 10, 8, 4, 5))
    units = torch.nn.functional.normalize(prototypes)
    found = dot_and_cosine(features, units)
    weights = units[:, :, None, None]
    projections = torch.nn.functional.conv2d(features, weights).flatten(2)
    cosines = torch.nn.functional.conv2d(torch.nn.functional.normalize(features), weights)
    torch.testing.assert_close(found.dots, projections.amax(2))
    torch.testing.assert_close(found.cosines, cosines.flatten(2).amax(2))
    at_winner = reference.nearest_patch(features, units, "dot", "linear", 1e-4)
    assert torch.equal(found.dot_locations, at_winner[2])
