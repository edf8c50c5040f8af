"""distance_map, similarity_map and mean_distance: values, gradients, indices."""

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
    put_patches_into_prototypes,
    random_problem,
)
from implementations import Implementation
from torch import Tensor

from protofast.ops import distance_map, mean_distance, nearest_patch, reference, similarity_map


def some_index(shape: Shape, count: int, device: object = "cpu") -> Tensor:
    """K prototypes for each image; with more than P of them, some repeat."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(shape.prototypes, (shape.images, count), generator=generator).to(device)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [None, 1, 40])
def test_distances(
    implementation: Implementation, count: int | None, shape: Shape, metric: str
) -> None:
    features, prototypes = random_problem(shape, device=implementation.device)
    index = None if count is None else some_index(shape, count, implementation.device)
    got = implementation.distance_map(features, prototypes, index, metric)
    exact = reference.distance_map(features.double(), prototypes.double(), index, metric)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [None, 3, 40])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients(
    implementation: Implementation, layout: str, count: int | None, metric: str
) -> None:
    shape = Shape(3, 10, 33, 5, 4)
    features, prototypes = random_problem(shape, device=implementation.device)
    put_patches_into_prototypes(features, prototypes)  # distances of 0 among them
    features = LAYOUTS[layout](features)
    index = None if count is None else some_index(shape, count, implementation.device)
    maps = implementation.distance_map(features, prototypes, index, metric)
    grad = torch.randn(maps.shape, generator=torch.Generator().manual_seed(1)).to(maps)
    got = implementation.distance_map_backward(grad, features, prototypes, index, metric)
    exact = reference.distance_map_backward(
        grad.double(), features.double(), prototypes.double(), index, metric
    )
    for a, b in zip(got, exact, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()
    assert got[0].stride() == torch.empty_like(features).stride()


@pytest.mark.parametrize("of_features", [torch.float16, torch.float32, torch.float64], ids=str)
def test_dtypes(implementation: Implementation, of_features: torch.dtype) -> None:
    features, prototypes = random_problem(Shape(2, 5, 9, 3, 3), device=implementation.device)
    features, prototypes = features.to(of_features), prototypes.bfloat16()
    wide = torch.promote_types(of_features, torch.float32)
    got = implementation.distance_map(features, prototypes)
    assert got.dtype == wide
    expected = implementation.distance_map(features.to(wide), prototypes.to(wide))
    assert torch.equal(got, expected)
    of_maps = implementation.distance_map_backward(got, features, prototypes, None, "squared_l2")
    assert of_maps[0].dtype == of_features
    assert of_maps[1].dtype == torch.bfloat16


def test_neither_threads_nor_the_batch_change_a_bit(
    implementation: Implementation, two_threads: None
) -> None:
    shape = Shape(7, 30, 50, 6, 6)
    features, prototypes = random_problem(shape, device=implementation.device)
    index = some_index(shape, 12, implementation.device)
    maps = implementation.distance_map(features, prototypes, index, "l2")

    def backward(some: slice) -> tuple[Tensor, Tensor]:
        return implementation.distance_map_backward(
            maps[some], features[some], prototypes, index[some], "l2"
        )

    expected = backward(slice(None))
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(implementation.distance_map(features, prototypes, index, "l2"), maps)
        for a, b in zip(backward(slice(None)), expected, strict=True):
            assert torch.equal(a, b)
    for n in range(7):
        one = slice(n, n + 1)
        part = implementation.distance_map(features[one], prototypes, index[one], "l2")
        assert torch.equal(part, maps[one])
        assert torch.equal(backward(one)[0], expected[0][one])


@pytest.mark.parametrize(
    ("images", "prototypes", "count"), [(0, 3, None), (3, 0, None), (3, 4, 0), (0, 4, 2)]
)
def test_empty(
    implementation: Implementation, images: int, prototypes: int, count: int | None
) -> None:
    shape = Shape(images, prototypes, 4, 2, 3)
    features, others = random_problem(shape, device=implementation.device)
    index = None if count is None else some_index(shape, count, implementation.device)
    maps = implementation.distance_map(features, others, index)
    assert maps.shape == (images, prototypes if count is None else count, 2, 3)
    got = implementation.distance_map_backward(maps, features, others, index, "squared_l2")
    for a, like in zip(got, (features, others), strict=True):
        assert torch.equal(a, torch.zeros_like(like))


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_an_index_beyond_the_prototypes_is_refused(
    implementation: Implementation, wrong: int
) -> None:
    if implementation.device.type == "cuda":
        pytest.skip("looking at the index would stop the host")
    features, prototypes = random_problem(Shape(2, 5, 4, 3, 3))
    index = torch.tensor([[0, 1], [4, wrong]])
    with pytest.raises((RuntimeError, IndexError), match=r"index must lie in \[0, 5\).*got"):
        implementation.distance_map(features, prototypes, index)
    grad = torch.zeros(2, 2, 3, 3)
    with pytest.raises((RuntimeError, IndexError), match=r"index must lie in \[0, 5\).*got"):
        implementation.distance_map_backward(grad, features, prototypes, index, "squared_l2")


def test_the_function_raises_index_error() -> None:
    features, prototypes = random_problem(Shape(2, 5, 4, 3, 3))
    index = torch.tensor([[0], [5]])
    for function in (distance_map, similarity_map):
        with pytest.raises(IndexError, match=r"index must lie in \[0, 5\); got 5"):
            function(features, prototypes, index=index)


@pytest.mark.parametrize(("metric", "similarity"), PAIRS)
def test_the_largest_similarity_is_the_activation(metric: str, similarity: str) -> None:
    features, prototypes = random_problem(Shape(3, 20, 16, 4, 5))
    put_patches_into_prototypes(features, prototypes)
    options = {"metric": metric, "similarity": similarity}
    maps = similarity_map(features, prototypes, **options)
    assert maps.shape == (3, 20, 4, 5)
    found = nearest_patch(features, prototypes, **options)
    torch.testing.assert_close(maps.amax((2, 3)), found.activations, rtol=1e-6, atol=1e-6)
    index = torch.tensor([[3, 3], [0, 19], [7, 1]])
    chosen = similarity_map(features, prototypes, index=index, **options)
    assert torch.equal(chosen, maps[torch.arange(3).unsqueeze(1), index])


def test_similarity_map_is_exact_at_distance_zero() -> None:
    features, prototypes = random_problem(Shape(2, 4, 64, 3, 3), dtype=torch.bfloat16)
    images, locations = put_patches_into_prototypes(features, prototypes)
    maps = similarity_map(features, prototypes).flatten(2)
    highest = torch.tensor(math.log(1 / EPS))
    assert (maps[images, torch.arange(4), locations] == highest).all()


@pytest.mark.parametrize(("metric", "similarity"), PAIRS)
def test_similarity_map_gradcheck(metric: str, similarity: str) -> None:
    features, prototypes = random_problem(Shape(2, 3, 4, 2, 3), dtype=torch.float64)
    index = torch.tensor([[0, 2, 2, 1], [1, 1, 0, 2]])
    features.requires_grad_()
    prototypes.requires_grad_()
    for chosen in (None, index):
        assert torch.autograd.gradcheck(
            lambda z, p, chosen=chosen: similarity_map(
                z, p, index=chosen, metric=metric, similarity=similarity, eps=0.1
            ),
            (features, prototypes),
        )


class TestMeanDistance:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("offset", [0.0, 100.0])
    def test_is_the_mean_of_the_map(self, shape: Shape, offset: float) -> None:
        features, prototypes = random_problem(shape)
        features, prototypes = features + offset, prototypes + offset
        exact = reference.distance_map(features.double(), prototypes.double(), None, "squared_l2")
        got = mean_distance(features, prototypes)
        torch.testing.assert_close(got.double(), exact.mean((2, 3)), rtol=1e-5, atol=1e-6)

    def test_is_zero_where_every_patch_is_the_prototype(self) -> None:
        prototypes = torch.rand(1, 33, generator=torch.Generator().manual_seed(0))
        features = prototypes.view(1, 33, 1, 1).expand(2, 33, 4, 4)
        assert (mean_distance(features, prototypes) == 0).all()

    def test_gradcheck(self) -> None:
        features, prototypes = random_problem(Shape(2, 3, 4, 2, 3), dtype=torch.float64)
        inputs = (features.requires_grad_(), prototypes.requires_grad_())
        assert torch.autograd.gradcheck(mean_distance, inputs)

    def test_windows(self) -> None:
        features, _ = random_problem(Shape(2, 1, 4, 5, 6), dtype=torch.float64)
        prototypes = torch.rand(3, 4, 2, 3, dtype=torch.float64)
        expected = distance_map(features, prototypes).mean((2, 3))
        torch.testing.assert_close(mean_distance(features, prototypes), expected)
