"""The k nearest patches: order, exactness, ties, NaN, bits, gradients, and inside PyTorch."""

import pytest
import torch
from cases import LAYOUTS, METRICS, PAIRS, SHAPES, Shape, random_problem, truth
from implementations import Implementation
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from protofast.ops import (
    NearestPatch,
    decomposition,
    dot_and_cosine,
    nearest_patch,
    nearest_patches,
    reference,
)


def some_count(shape: Shape, most: int = 8) -> int:
    return min(most, shape.height * shape.width)


def assert_same(got: NearestPatch, expected: NearestPatch) -> None:
    """Bit for bit, NaN equal to NaN."""
    for name, a, b in zip(got._fields, got, expected, strict=True):
        assert torch.equal(a.nan_to_num(nan=7e7), b.nan_to_num(nan=7e7)), name


def whole_numbers(shape: Shape, *, device: object) -> tuple[Tensor, Tensor]:
    """Problems full of equal distances, all of which are exact."""
    generator = torch.Generator().manual_seed(4)
    n, p, d, h, w = shape
    features = torch.randint(-1, 2, (n, d, h, w), generator=generator)
    prototypes = torch.randint(-1, 2, (p, d), generator=generator)
    return features.to(device, torch.float32), prototypes.to(device, torch.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_least_distances_in_order(
    implementation: Implementation, shape: Shape, metric: str
) -> None:
    features, prototypes = random_problem(shape, device=implementation.device)
    k = some_count(shape)
    found = implementation.nearest_patches(features, prototypes, k, metric, "linear")
    exact = truth(features, prototypes, metric)
    assert found.distances.shape == (shape.images, shape.prototypes, k)
    assert found.distances.dtype == torch.float32
    assert found.locations.dtype == torch.int64
    assert (found.distances.diff(dim=2) >= 0).all()
    assert (found.locations.sort(dim=2).values.diff(dim=2) > 0).all()  # each location once
    here = exact.maps.gather(2, found.locations)
    scale = exact.norms.unsqueeze(2) if metric in ("dot", "cosine") else here
    assert ((found.distances.double() - here).abs() <= 1e-6 * scale).all()
    least = exact.maps.sort(dim=2).values[..., :k]
    regret = here - least if metric != "l2" else here.square() - least.square()
    assert (regret <= 1e-5 * exact.norms.unsqueeze(2)).all()
    assert torch.equal(found.activations, -found.distances)


@pytest.mark.parametrize(("metric", "similarity"), PAIRS)
@pytest.mark.parametrize("k", [1, 5])
def test_the_first_is_the_nearest_patch(
    implementation: Implementation, k: int, metric: str, similarity: str
) -> None:
    if implementation.device.type != "cpu":
        pytest.skip("on GPUs nearest_patch has kernels of its own")
    features, prototypes = random_problem(Shape(3, 37, 130, 5, 7), seed=5)
    prototypes[3] = features[1, :, 2, 2]
    found = implementation.nearest_patches(features, prototypes, k, metric, similarity)
    one = implementation.nearest_patch(features, prototypes, metric, similarity)
    assert_same(NearestPatch(*(part[..., 0] for part in found)), one)


@pytest.mark.parametrize("metric", ["squared_l2", "l2", "dot"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_equal_distances_go_by_location(
    implementation: Implementation, k: int, metric: str
) -> None:
    shape = Shape(3, 35, 6, 4, 5)
    features, prototypes = whole_numbers(shape, device=implementation.device)
    found = implementation.nearest_patches(features, prototypes, k, metric, "linear")
    maps = truth(features, prototypes, metric).maps
    expected = maps.sort(dim=2, stable=True)
    assert torch.equal(found.locations, expected.indices[..., :k])
    torch.testing.assert_close(found.distances.double(), expected.values[..., :k])


def test_a_constant_map_gives_the_first_locations(implementation: Implementation) -> None:
    for metric in METRICS:
        features = torch.full((2, 5, 4, 4), 0.3, device=implementation.device)
        prototypes = torch.rand(19, 5, generator=torch.Generator().manual_seed(0)).to(features)
        found = implementation.nearest_patches(features, prototypes, 8, metric, "linear")
        assert (found.locations.cpu() == torch.arange(8)).all()


def test_all_locations_there_are(implementation: Implementation) -> None:
    features, prototypes = random_problem(Shape(4, 21, 9, 2, 4), device=implementation.device)
    found = implementation.nearest_patches(features, prototypes, 8)
    assert (found.locations.sort(dim=2).values.cpu() == torch.arange(8)).all()


@pytest.mark.parametrize("metric", METRICS)
def test_nan_comes_first_and_stays_in_its_image(
    implementation: Implementation, metric: str
) -> None:
    features, prototypes = random_problem(Shape(4, 33, 20, 3, 3), device=implementation.device)
    plain = implementation.nearest_patches(features, prototypes, 4, metric, "linear")
    features[2, 3, 1, 2] = float("nan")  # location 5
    features[2, 7, 2, 1] = float("nan")  # location 7
    found = implementation.nearest_patches(features, prototypes, 4, metric, "linear")
    assert found.distances[2, :, :2].isnan().all()
    assert found.activations[2, :, :2].isnan().all()
    assert (found.locations[2, :, :2].cpu() == torch.tensor([5, 7])).all()
    assert found.distances[2, :, 2:].isfinite().all()
    for part, before in zip(found, plain, strict=True):
        assert torch.equal(part[[0, 1, 3]], before[[0, 1, 3]])
    prototypes[4, 0] = float("nan")
    found = implementation.nearest_patches(features, prototypes, 4, metric, "linear")
    assert found.distances[:, 4].isnan().all()
    assert (found.locations[0, 4].cpu() == torch.arange(4)).all()
    others = [p for p in range(33) if p != 4]
    assert torch.equal(found.distances[0, others], plain.distances[0, others])


def test_infinity_is_the_farthest(implementation: Implementation) -> None:
    features, prototypes = random_problem(Shape(2, 9, 6, 2, 2), device=implementation.device)
    features[0, 1, 0, 0] = float("inf")
    found = implementation.nearest_patches(features, prototypes, 4)
    assert (found.locations[0, :, 3] == 0).all()
    assert (found.distances[0, :, 3] == float("inf")).all()
    assert (found.activations[0, :, 3] == 0).all()
    assert found.distances[0, :, :3].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_dtypes_give_the_same_bits(
    implementation: Implementation, layout: str, dtype: torch.dtype
) -> None:
    features, prototypes = random_problem(
        Shape(3, 18, 24, 3, 4), dtype=dtype, device=implementation.device
    )
    wide = dtype if dtype == torch.float64 else torch.float32
    expected = implementation.nearest_patches(features.to(wide), prototypes.to(wide), 3)
    assert expected.distances.dtype == wide
    assert_same(implementation.nearest_patches(LAYOUTS[layout](features), prototypes, 3), expected)


def test_neither_threads_nor_the_batch_change_a_bit(
    implementation: Implementation, two_threads: None
) -> None:
    features, prototypes = random_problem(Shape(7, 70, 64, 7, 7), device=implementation.device)
    together = implementation.nearest_patches(features, prototypes, 5)
    torch.set_num_threads(1)
    assert_same(implementation.nearest_patches(features, prototypes, 5), together)
    for n in (0, 6):
        alone = implementation.nearest_patches(features[n : n + 1], prototypes, 5)
        assert_same(alone, NearestPatch(*(part[n : n + 1] for part in together)))


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("prototypes", [0, 3])
def test_empty(implementation: Implementation, images: int, prototypes: int) -> None:
    shape = Shape(images, prototypes, 4, 2, 2)
    found = implementation.nearest_patches(*random_problem(shape, device=implementation.device), 2)
    assert all(part.shape == (images, prototypes, 2) for part in found)


# ------------------------------------------------------------------ gradients


def wanting_gradients(tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return tensors[0].detach().requires_grad_(), tensors[1].detach().requires_grad_()


@pytest.mark.parametrize(("metric", "similarity"), PAIRS)
def test_gradcheck(metric: str, similarity: str) -> None:
    inputs = random_problem(Shape(2, 5, 4, 3, 2), dtype=torch.float64, seed=1)

    def both(features: Tensor, prototypes: Tensor) -> tuple[Tensor, ...]:
        return nearest_patches(
            features, prototypes, 3, metric=metric, similarity=similarity, eps=0.01
        )[:2]

    assert torch.autograd.gradcheck(both, wanting_gradients(inputs))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_those_through_the_map(dtype: torch.dtype, metric: str) -> None:
    problem = random_problem(Shape(3, 12, 17, 4, 4), dtype=dtype)
    features, prototypes = wanting_gradients(problem)
    found = nearest_patches(features, prototypes, 4, metric=metric, similarity="linear")
    weights = torch.linspace(-1, 1, found.distances.numel()).view_as(found.distances)
    (weights * found.activations).sum().backward()
    wide = wanting_gradients((problem[0].double(), problem[1].double()))
    patches = wide[0].flatten(2).mT.unsqueeze(1)  # [N, 1, L, D]
    maps = reference.pair_distance(patches, wide[1].unsqueeze(1), metric)  # [N, P, L]
    (-weights.double() * maps.gather(2, found.locations)).sum().backward()
    for got, expected in ((features.grad, wide[0].grad), (prototypes.grad, wide[1].grad)):
        assert got is not None
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected.to(dtype).double(), rtol=1e-2, atol=2e-6)


def test_gradients_only_where_wanted_and_given() -> None:
    features, prototypes = random_problem(Shape(3, 6, 8, 3, 3))
    features.requires_grad_()
    found = nearest_patches(features, prototypes, 2)
    assert not found.locations.requires_grad
    found.distances[0, 1, 1].backward()
    assert features.grad is not None
    touched = features.grad.abs().sum(1).flatten(1).nonzero().tolist()
    assert touched == [[0, int(found.locations[0, 1, 1])]]


def test_no_map_is_kept_for_the_backward() -> None:
    """Neither [N, P, H, W] nor [N, P, D]: only inputs and [N, P, k]."""
    features, prototypes = wanting_gradients(random_problem(Shape(2, 50, 16, 7, 7)))
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nearest_patches(features, prototypes, 3)
        dot_and_cosine(features, prototypes)
    assert sizes
    assert max(sizes) == features.numel()


def test_the_same_gradient_bits_for_any_number_of_threads(two_threads: None) -> None:
    problem = random_problem(Shape(9, 70, 32, 5, 5))
    gradients = []
    for threads in (2, 1, 1):
        torch.set_num_threads(threads)
        features, prototypes = wanting_gradients(problem)
        nearest_patches(features, prototypes, 4).activations.square().sum().backward()
        gradients.append((features.grad, prototypes.grad))
    for others in gradients[1:]:
        for a, b in zip(gradients[0], others, strict=True):
            assert torch.equal(a, b)


# ------------------------------------------------------------------ inside PyTorch


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_opcheck() -> None:
    features, prototypes = random_problem(Shape(3, 10, 8, 4, 5))
    for inputs in (
        (features, prototypes),
        (features.to(memory_format=torch.channels_last).bfloat16(), prototypes),
        random_problem(Shape(0, 4, 3, 2, 2)),
    ):
        torch.library.opcheck(
            torch.ops.protofast.nearest_patches.default,
            (*wanting_gradients(inputs), 3, "squared_l2", "log", 1e-4),
        )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(dynamic: bool) -> None:
    def loss_of(features: Tensor, prototypes: Tensor) -> Tensor:
        found = nearest_patches(features, prototypes, 3)
        return found.activations.sum() - found.distances.square().sum()

    torch.compiler.reset()
    compiled = torch.compile(loss_of, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in (Shape(3, 10, 8, 4, 5), Shape(2, 7, 8, 6, 5)):
        problem = random_problem(shape)
        ours, theirs = wanting_gradients(problem), wanting_gradients(problem)
        loss, expected = compiled(*ours), loss_of(*theirs)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        expected.backward()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_fake_results_have_the_real_shapes_and_dtypes() -> None:
    features, prototypes = random_problem(Shape(3, 10, 8, 4, 5), dtype=torch.float16)
    real = nearest_patches(features, prototypes, 3)
    with FakeTensorMode() as mode:
        fake = nearest_patches(mode.from_tensor(features), mode.from_tensor(prototypes), 3)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize("metric", METRICS)
def test_the_decomposition_for_export(metric: str) -> None:
    features, prototypes = random_problem(Shape(3, 10, 8, 4, 5))
    prototypes[0] = features[1, :, 2, 3]
    similarity = "log" if metric.endswith("l2") else "linear"
    arguments = (features, prototypes, 4, metric, similarity, 1e-4)
    replaced = decomposition.table()[torch.ops.protofast.nearest_patches.default]
    found = NearestPatch(*replaced(*arguments))  # type: ignore[misc]
    expected = nearest_patches(features, prototypes, 4, metric=metric, similarity=similarity)
    assert torch.equal(found.locations, expected.locations)
    torch.testing.assert_close(found.distances, expected.distances)
    torch.testing.assert_close(found.activations, expected.activations)


def test_a_second_derivative_is_an_error() -> None:
    features, prototypes = wanting_gradients(random_problem(Shape(2, 3, 4, 3, 3)))
    loss = nearest_patches(features, prototypes, 2).activations.sum()
    (grad,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(RuntimeError, match="nearest_patch has no second derivative"):
        grad.sum().backward()


# ------------------------------------------------------------------ arguments


def test_prototypes_of_several_patches() -> None:
    features, _ = random_problem(Shape(2, 1, 3, 4, 5))
    prototypes = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    found = nearest_patches(features, prototypes, 2)
    assert torch.equal(found.locations[..., 0], nearest_patch(features, prototypes).locations)
    assert found.locations.max() < 3 * 4


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (0, "k must lie between 1 and 8; got 0"),
        (9, "k must lie between 1 and 8; got 9"),
        (7, "k must not exceed the number of locations, 2 x 3; got 7"),
    ],
)
def test_a_number_of_patches_that_cannot_be(k: int, message: str) -> None:
    features, prototypes = random_problem(Shape(2, 4, 5, 2, 3))
    with pytest.raises(ValueError, match=message):
        nearest_patches(features, prototypes, k)
    with pytest.raises((ValueError, RuntimeError), match="k must"):
        torch.ops.protofast.nearest_patches(features, prototypes, k, "l2", "log", 1e-4)


@pytest.mark.parametrize("k", [2.0, True, None])
def test_a_number_of_patches_is_an_int(k: object) -> None:
    features, prototypes = random_problem(Shape(2, 4, 5, 2, 3))
    with pytest.raises(TypeError, match=f"k must be an int; got {type(k).__name__}"):
        nearest_patches(features, prototypes, k)  # type: ignore[arg-type]
