"""The operators inside PyTorch: opcheck, gradcheck, torch.compile, autocast, second derivatives."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import METRICS, PAIRS, Shape, random_problem
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from protofast.ops import NearestPatch, distance_map, mean_distance, nearest_patch, similarity_map
from protofast.ops._library import cpu_instruction_set

# opcheck itself looks at the gradients of its copies of inputs with gaps.
ignore_opchecks_own_warning = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

SHAPE = Shape(3, 10, 8, 4, 5)
CHANNELS_LAST = torch.channels_last


def sample_inputs() -> Iterator[tuple[Tensor, Tensor]]:
    """Features and prototypes that want gradients: layouts, dtypes, empty ones."""
    features, prototypes = random_problem(SHAPE)
    yield features, prototypes
    yield features.to(memory_format=CHANNELS_LAST), prototypes
    yield features.bfloat16(), prototypes
    yield features[..., ::2], prototypes.double()
    for shape in (Shape(0, 4, 3, 2, 2), Shape(2, 0, 3, 2, 2), Shape(1, 1, 1, 1, 1)):
        yield random_problem(shape)


def wanting_gradients(tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return tensors[0].detach().requires_grad_(), tensors[1].detach().requires_grad_()


def some_index(features: Tensor, prototypes: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (len(features), 3 if len(prototypes) else 0)
    return torch.randint(max(1, len(prototypes)), shape, generator=generator)


@ignore_opchecks_own_warning
def test_opcheck_nearest_patch() -> None:
    for inputs in sample_inputs():
        features, prototypes = wanting_gradients(inputs)
        options = ("squared_l2", "log", 1e-4, "float32", "auto")
        torch.library.opcheck(
            torch.ops.protofast.nearest_patch.default, (features, prototypes, *options)
        )


def test_opcheck_nearest_patch_backward() -> None:
    for features, prototypes in sample_inputs():
        found = nearest_patch(features, prototypes, metric="l2")
        for given, needed in (
            ((found.activations, found.distances), (True, True)),
            ((None, found.distances), (False, True)),
            ((found.activations, None), (True, False)),
        ):
            arguments = (
                *given,
                features,
                prototypes,
                found.distances,
                found.locations,
                "l2",
                "log",
                1e-4,
                *needed,
            )
            torch.library.opcheck(torch.ops.protofast.nearest_patch_backward.default, arguments)


@ignore_opchecks_own_warning
def test_opcheck_distance_map() -> None:
    for inputs in sample_inputs():
        for index in (None, some_index(*inputs)):
            features, prototypes = wanting_gradients(inputs)
            torch.library.opcheck(
                torch.ops.protofast.distance_map.default, (features, prototypes, index, "l2")
            )


def test_opcheck_distance_map_backward() -> None:
    for features, prototypes in sample_inputs():
        for index in (None, some_index(features, prototypes)):
            grad = distance_map(features, prototypes, index=index)
            torch.library.opcheck(
                torch.ops.protofast.distance_map_backward.default,
                (grad, features, prototypes, index, "cosine"),
            )


@pytest.mark.parametrize(("metric", "similarity"), PAIRS)
def test_gradcheck(metric: str, similarity: str) -> None:
    inputs = random_problem(Shape(2, 5, 4, 3, 2), dtype=torch.float64, seed=1)

    def both(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        found = nearest_patch(features, prototypes, metric=metric, similarity=similarity, eps=0.01)
        return found.activations, found.distances

    assert torch.autograd.gradcheck(both, wanting_gradients(inputs))


def everything(features: Tensor, prototypes: Tensor, index: Tensor) -> Tensor:
    """A loss through every function."""
    found = nearest_patch(features, prototypes)
    maps = similarity_map(features, prototypes, index=index, metric="l2")
    means = mean_distance(features, prototypes)
    return found.activations.sum() - found.distances.mean() + maps.square().sum() + means.sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(everything, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in (SHAPE, Shape(5, 10, 8, 4, 5), Shape(2, 7, 8, 6, 5)):
        problem = random_problem(shape)
        index = some_index(*problem)
        ours, theirs = wanting_gradients(problem), wanting_gradients(problem)
        loss, expected = compiled(*ours, index), everything(*theirs, index)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        expected.backward()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # older torch's own import
def test_compile_to_machine_code_with_channels_last() -> None:
    torch.compiler.reset()

    def step(images: Tensor, weight: Tensor, prototypes: Tensor) -> NearestPatch:
        features = torch.sigmoid(torch.nn.functional.conv2d(images, weight))
        return nearest_patch(features, prototypes)

    images = torch.rand(2, 3, 6, 6).to(memory_format=CHANNELS_LAST)
    inputs = [torch.rand(8, 3, 1, 1), torch.rand(5, 8)]
    gradients = []
    for function in (step, torch.compile(step, fullgraph=True)):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        found = function(images, *leaves)
        (found.activations.sum() + found.distances.sum()).backward()
        gradients.append([found.distances.detach(), *(leaf.grad for leaf in leaves)])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [nearest_patch, distance_map])
def test_a_second_derivative_is_an_error(function: Any) -> None:
    features, prototypes = wanting_gradients(random_problem(SHAPE))
    result = function(features, prototypes)
    loss = (result.activations if isinstance(result, NearestPatch) else result).sum()
    (grad,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{function.__name__} has no second derivative"):
        grad.sum().backward()


def test_autocast_leaves_the_operator_alone() -> None:
    images = torch.rand(2, 3, 6, 6)
    weight = torch.rand(8, 3, 1, 1, requires_grad=True)
    prototypes = torch.rand(5, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = torch.nn.functional.conv2d(images, weight)
        assert features.dtype == torch.bfloat16
        found = nearest_patch(features, prototypes)
        maps = distance_map(features, prototypes)
    assert found.distances.dtype == found.activations.dtype == maps.dtype == torch.float32
    expected = nearest_patch(features.float(), prototypes)
    assert torch.equal(found.distances, expected.distances)
    found.activations.sum().backward()
    assert prototypes.grad is not None
    assert prototypes.grad.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_gradients_only_where_wanted() -> None:
    features, prototypes = random_problem(SHAPE)
    for want in ("features", "prototypes"):
        leaves = {"features": features.clone(), "prototypes": prototypes.clone()}
        leaves[want].requires_grad_()
        found = nearest_patch(leaves["features"], leaves["prototypes"])
        assert not found.locations.requires_grad
        found.distances.sum().backward()
        for name, leaf in leaves.items():
            assert (leaf.grad is not None) == (name == want)
    plain = nearest_patch(features, prototypes)
    assert not plain.activations.requires_grad


def test_expanded_and_partial_gradients() -> None:
    """As sum() and indexing give them: stride 0, zeros, and only one of the outputs used."""
    problem = random_problem(SHAPE)
    results = []
    for use in ("sum", "weights"):
        features, prototypes = wanting_gradients(problem)
        activations = nearest_patch(features, prototypes).activations
        if use == "sum":
            activations[1].sum().backward()
        else:
            weights = torch.zeros_like(activations)
            weights[1] = 1
            activations.backward(weights)
        results.append((features.grad, prototypes.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST], ids=str)
def test_fake_results_have_the_real_shapes_and_strides(
    layout: torch.memory_format, metric: str
) -> None:
    features, prototypes = random_problem(SHAPE, dtype=torch.float16)
    features = features.to(memory_format=layout)

    def run(features: Tensor, prototypes: Tensor) -> list[Tensor]:
        features, prototypes = wanting_gradients((features, prototypes))
        found = nearest_patch(features, prototypes, metric=metric, similarity="linear")
        maps = distance_map(features, prototypes, metric=metric)
        loss = found.activations.sum() + maps.sum()
        return [*found, maps, *torch.autograd.grad(loss, (features, prototypes))]

    real = run(features, prototypes)
    with FakeTensorMode() as mode:
        fake = run(mode.from_tensor(features), mode.from_tensor(prototypes))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_deterministic_algorithms_are_accepted() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        features, prototypes = wanting_gradients(random_problem(SHAPE))
        everything(features, prototypes, some_index(features, prototypes)).backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_no_map_is_kept_for_the_backward() -> None:
    """Neither [N, P, H, W] nor [N, P, D]: only inputs and [N, P]."""
    features, prototypes = wanting_gradients(random_problem(Shape(2, 50, 16, 7, 7)))
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nearest_patch(features, prototypes)
    assert sizes
    assert max(sizes) == features.numel()


@pytest.mark.slow
def test_more_than_2_to_the_31_distances() -> None:
    """N * P * H * W beyond 32 bits; there is memory only for what is not a map."""
    features = 1 + torch.rand(2, 1, 513, 511, generator=torch.Generator().manual_seed(0))
    features[0, 0, 512, 510] = 0.5
    features[1, 0, 100, 7] = 0.5
    prototypes = -torch.rand(4200, 1, generator=torch.Generator().manual_seed(1))
    if cpu_instruction_set() == "reference":
        pytest.skip("takes minutes without protofast's CPU kernels")
    found = nearest_patch(features, prototypes)
    assert found.distances.numel() * 513 * 511 > 2**31
    assert (found.locations[0] == 513 * 511 - 1).all()
    assert (found.locations[1] == 100 * 511 + 7).all()
    torch.testing.assert_close(found.distances[0], (0.5 - prototypes[:, 0]).square())


def test_more_blocks_than_a_grid_has_rows() -> None:
    features, prototypes = wanting_gradients(random_problem(Shape(70000, 1, 1, 1, 1)))
    found = nearest_patch(features, prototypes)
    expected = (features.flatten() - prototypes).square().view(-1, 1)
    torch.testing.assert_close(found.distances, expected)
    features, prototypes = random_problem(Shape(1, 70000, 1, 1, 1))
    found = nearest_patch(features, prototypes)
    torch.testing.assert_close(found.distances, (features.flatten() - prototypes).square().t())
