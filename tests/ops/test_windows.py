"""Prototypes of several patches, [P, D, h, w]."""

from collections.abc import Callable

import pytest
import torch
from cases import METRICS, Shape, random_problem

from protofast.ops import distance_map, mean_distance, nearest_patch, similarity_map


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 1), (3, 3), (4, 5)])
def test_the_same_as_a_loop_over_windows(height: int, width: int, metric: str) -> None:
    features, _ = random_problem(Shape(2, 1, 3, 4, 5), dtype=torch.float64)
    prototypes = torch.rand(
        6, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    maps = distance_map(features, prototypes, metric=metric)
    rows, columns = 4 - height + 1, 5 - width + 1
    assert maps.shape == (2, 6, rows, columns)
    for row in range(rows):
        for column in range(columns):
            window = features[:, :, row : row + height, column : column + width]
            expected = distance_map(
                window.reshape(2, -1, 1, 1), prototypes.flatten(1), metric=metric
            )
            torch.testing.assert_close(maps[:, :, row, column], expected[..., 0, 0])
    found = nearest_patch(features, prototypes, metric=metric, similarity="linear")
    torch.testing.assert_close(found.distances, maps.amin((2, 3)))
    assert torch.equal(found.locations, maps.flatten(2).argmin(2))


def test_one_by_one_prototypes_are_the_flat_ones() -> None:
    features, prototypes = random_problem(Shape(2, 5, 3, 4, 4))
    found = nearest_patch(features, prototypes[:, :, None, None])
    for a, b in zip(found, nearest_patch(features, prototypes), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    features, _ = random_problem(Shape(2, 1, 3, 4, 5), dtype=dtype)
    prototypes = features[:, :, 1:3, 2:4].clone()
    found = nearest_patch(features, prototypes)
    assert (found.distances.diagonal() == 0).all()
    assert (found.locations.diagonal() == 1 * 4 + 2).all()


def test_gradients_reach_both() -> None:
    features, _ = random_problem(Shape(2, 1, 2, 3, 3), dtype=torch.float64)
    prototypes = torch.rand(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, p: nearest_patch(z, p)[:2], (features, prototypes))


@pytest.mark.parametrize("function", [nearest_patch, distance_map, mean_distance, similarity_map])
def test_arguments_are_checked_before_windows_are_taken(function: Callable[..., object]) -> None:
    prototypes = torch.rand(6, 3, 2, 2)
    with pytest.raises(TypeError, match=r"features must be float16.*got torch.int64"):
        function(torch.ones(2, 3, 4, 5, dtype=torch.int64), prototypes)
    with pytest.raises(TypeError, match=r"features must be dense .*got torch.sparse_coo"):
        function(torch.ones(2, 3, 4, 5).to_sparse(), prototypes)
    with pytest.raises(ValueError, match=r"at least one channel; got \[2, 0, 4, 5\]"):
        function(torch.ones(2, 0, 4, 5), torch.ones(6, 0, 2, 2))
    with pytest.raises(ValueError, match=r"expected features .*got features \[3, 4, 5\]"):
        function(torch.ones(3, 4, 5), prototypes)


def test_windows_that_do_not_fit() -> None:
    features, _ = random_problem(Shape(2, 1, 3, 4, 5))
    with pytest.raises(ValueError, match="prototypes of 5 x 1 patches do not fit a grid of 4 x 5"):
        nearest_patch(features, torch.rand(6, 3, 5, 1))
    with pytest.raises(
        ValueError, match=r"same depth D; got 3 and 2.*\[2, 3, 4, 5\].*\[6, 2, 2, 2\]"
    ):
        nearest_patch(features, torch.rand(6, 2, 2, 2))
