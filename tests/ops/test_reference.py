"""The plain-PyTorch reference against formulas written another way."""

import math

import pytest
import torch
from cases import METRICS, Shape, random_problem
from torch.nn import functional

from protofast.ops import reference


def test_distances_of_the_original_prototype_layer() -> None:
    """Chen et al. 2019: relu(conv(z^2, 1) - 2 conv(z, p) + |p|^2), then min pooling."""
    features, prototypes = random_problem(Shape(3, 11, 16, 5, 4), dtype=torch.float64)
    kernels = prototypes[:, :, None, None]
    squares = functional.conv2d(features**2, torch.ones_like(kernels))
    products = functional.conv2d(features, kernels)
    norms = kernels.square().sum((1, 2, 3)).view(-1, 1, 1)
    maps = functional.relu(squares - 2 * products + norms)
    got = reference.distance_map(features, prototypes, None, "squared_l2")
    torch.testing.assert_close(got, maps)
    least, where = functional.max_pool2d(-maps, (5, 4), return_indices=True)
    activations, distances, locations = reference.nearest_patch(
        features, prototypes, "squared_l2", "log", 1e-4
    )
    torch.testing.assert_close(distances, -least.flatten(1))
    assert torch.equal(locations, where.flatten(1))
    torch.testing.assert_close(activations, torch.log((distances + 1) / (distances + 1e-4)))


def test_other_metrics() -> None:
    features, prototypes = random_problem(Shape(2, 7, 6, 3, 3), dtype=torch.float64)
    rows = features.flatten(2).mT  # [N, L, D]
    expected = {
        "l2": torch.cdist(prototypes.expand(2, -1, -1), rows),
        "dot": -prototypes @ rows.mT,
        "cosine": -functional.cosine_similarity(rows.unsqueeze(1), prototypes.unsqueeze(1), dim=3),
    }
    for metric, maps in expected.items():
        got = reference.distance_map(features, prototypes, None, metric).flatten(2)
        torch.testing.assert_close(got, maps)


@pytest.mark.parametrize("similarity", ["log", "linear", "exp"])
def test_similarities_and_their_derivatives(similarity: str) -> None:
    formulas = {
        "log": lambda d: torch.log((d + 1) / (d + 0.01)),
        "linear": lambda d: -d,
        "exp": lambda d: torch.exp(-d),
    }
    distances = torch.logspace(-6, 3, 50, dtype=torch.float64).requires_grad_()
    values = reference.similarity(distances, similarity, 0.01)
    torch.testing.assert_close(values, formulas[similarity](distances))
    (slope,) = torch.autograd.grad(values.sum(), distances)
    expected = reference.similarity_derivative(distances.detach(), similarity, 0.01)
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("metric", METRICS)
def test_autograd_through_the_formula_is_finite_at_equal_and_at_zero_vectors(metric: str) -> None:
    patches = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]], requires_grad=True)
    prototypes = torch.tensor([[1.0, 2.0], [1.0, 1.0], [0.0, 0.0]], requires_grad=True)
    distances = reference.pair_distance(patches, prototypes, metric)
    for grad in torch.autograd.grad(distances.sum(), (patches, prototypes)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-3, 1e-4, 0.0])
def test_cosine_gradients_of_nearly_parallel_vectors(apart: float) -> None:
    """What a projected prototype and its patch are; the textbook formula loses four digits here."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(50, 128, generator=generator)
    prototypes = patches + apart * torch.randn(50, 128, generator=generator)
    exact = [rows.double().requires_grad_() for rows in (patches, prototypes)]
    cosines = functional.cosine_similarity(*exact, dim=1)
    expected = torch.autograd.grad(-cosines.sum(), exact)
    got = reference.pair_gradients(torch.ones(50), patches, prototypes, "cosine")
    for grad, wanted in zip(got, expected, strict=True):
        error = (grad - wanted).norm(dim=1)
        if apart:
            assert (error <= 1e-6 * wanted.norm(dim=1)).all()
        else:
            assert (grad == 0).all()


def test_log_similarity_at_its_ends() -> None:
    zero = torch.zeros(3, requires_grad=True)
    values = reference.similarity(zero, "log", 1e-4)
    assert (values == torch.tensor(math.log(1e4))).all()
    (slope,) = torch.autograd.grad(values.sum(), zero)
    torch.testing.assert_close(slope, torch.full((3,), -(1 - 1e-4) / 1e-4))
    far = torch.tensor([1e12, math.inf, math.nan])
    got = reference.similarity(far, "log", 1e-4)
    torch.testing.assert_close(
        got, torch.tensor([(1 - 1e-4) / 1e12, 0.0, math.nan]), equal_nan=True
    )


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_are_those_of_autograd(metric: str) -> None:
    features, prototypes = random_problem(Shape(3, 7, 6, 3, 3), dtype=torch.float64)
    features.requires_grad_()
    prototypes.requires_grad_()
    rows = features.flatten(2).mT.unsqueeze(1)  # [N, 1, L, D]
    maps = reference.pair_distance(rows, prototypes[:, None], metric)  # [N, P, L]
    weights = torch.rand(maps.shape, dtype=torch.float64)
    expected = torch.autograd.grad((maps * weights).sum(), (features, prototypes))
    got = reference.distance_map_backward(
        weights.view(3, 7, 3, 3), features.detach(), prototypes.detach(), None, metric
    )
    torch.testing.assert_close(got, expected)
