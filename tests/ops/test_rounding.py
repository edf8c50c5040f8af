"""Inputs on which rounding errors do not average out: like channels, near ties, tiny numbers."""

import pytest
import torch
from implementations import CompiledCpu, Implementation

from protofast.ops import reference


@pytest.mark.parametrize("depth", [128, 256, 512, 2048])
def test_ties_of_patches_that_are_constant_along_the_depth(
    implementation: Implementation, depth: int
) -> None:
    """Sums of equal terms round the same way each time; b - d and b + d are equally far from b."""
    generator = torch.Generator().manual_seed(depth)
    centre = torch.randint(200, 1800, (300,), generator=generator) / 2048
    apart = torch.randint(1, 200, (300,), generator=generator) / 2048
    cells = torch.stack([centre - apart, centre + apart], dim=1).view(300, 1, 1, 2)
    features = cells.expand(300, depth, 1, 2).contiguous().to(implementation.device)
    prototypes = centre.view(-1, 1).expand(300, depth).contiguous().to(implementation.device)
    found = implementation.nearest_patch(features, prototypes)
    assert (found.locations.diagonal() == 0).all()
    torch.testing.assert_close(
        found.distances.diagonal().cpu(), depth * apart.square(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("length", [0.0, 0.02, 0.05, 0.1])
def test_sums_of_squares_that_round_one_way(implementation: Implementation, length: float) -> None:
    """127 squares of a little less, or more, than half a unit in the last place of the sum."""
    if not isinstance(implementation, CompiledCpu):
        pytest.skip("how others add up is not known")
    unit = 2.0**-24
    features = torch.zeros(1, 128, 1, 2)
    features[0, :, 0, 0] = (0.98 * unit) ** 0.5  # seems shorter than it is
    features[0, :, 0, 1] = (1.02 * unit) ** 0.5  # longer
    features[0, 0, 0] = torch.tensor([1 + 24 * unit, 1])
    prototypes = torch.zeros(2, 128)
    prototypes[:, 0] = torch.tensor([length, -length])  # around 0, so that nothing is centred
    found = implementation.nearest_patch(features, prototypes)
    assert found.locations.tolist() == [[1, 1]]


@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-3, 1e-4])
def test_cosine_gradients_of_nearly_parallel_vectors(
    implementation: Implementation, apart: float
) -> None:
    """A prototype beside the patch that it was projected on."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(6, 130, 1, 1, generator=generator)
    prototypes = features[:, :, 0, 0] + apart * torch.randn(6, 130, generator=generator)
    grad = torch.eye(6)
    wide = features.double(), prototypes.double()
    _, distances, locations = reference.nearest_patch(*wide, "cosine", "linear", 1e-4)
    expected = reference.nearest_patch_backward(
        None, grad.double(), *wide, distances, locations, "cosine", "linear", 1e-4
    )
    device = implementation.device
    given = (None, grad.to(device), features.to(device), prototypes.to(device))
    found = implementation.nearest_patch(*given[2:], metric="cosine", similarity="linear")
    got = implementation.nearest_patch_backward(
        *given, found.distances, found.locations, "cosine", "linear", 1e-4, True, True
    )
    maps = given[2].clone().requires_grad_(), given[3].clone().requires_grad_()
    index = torch.arange(6, device=device).view(6, 1)
    with implementation.active():
        found_maps = torch.ops.protofast.distance_map(*maps, index, "cosine")
        of_map = torch.autograd.grad(found_maps.sum(), maps)
    for grads in (got, of_map):
        for ours, exact in zip(grads, expected, strict=True):
            exact = exact.flatten(1)
            error = (ours.cpu().double().flatten(1) - exact).norm(dim=1)
            assert (error <= 1e-6 * exact.norm(dim=1)).all()


def test_a_patch_whose_square_underflows_has_a_direction(implementation: Implementation) -> None:
    if not isinstance(implementation, CompiledCpu):
        pytest.skip("squares below 1e-38 are lost in float32 but in the CPU kernels")
    features = torch.tensor([[[[1.0, 1e-30]], [[1.0, 0.0]]]])  # patches (1, 1) and (1e-30, 0)
    found = implementation.nearest_patch(features, torch.tensor([[1.0, 0.0]]), "cosine", "linear")
    assert found.locations.item() == 1
    assert found.distances.item() == -1
    zero = torch.tensor([[[[1.0, 0.0]], [[-1.0, 0.0]]]])  # patches (1, -1) and (0, 0)
    found = implementation.nearest_patch(zero, torch.tensor([[-1.0, 0.0]]), "cosine", "linear")
    assert (found.locations.item(), found.distances.item()) == (1, 0)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_numbers_whose_squares_underflow(implementation: Implementation, metric: str) -> None:
    if not isinstance(implementation, CompiledCpu):
        pytest.skip("squares below 1e-38 are lost in float32 but in the CPU kernels")
    generator = torch.Generator().manual_seed(0)
    features = 1e-22 * torch.rand(3, 64, 3, 3, generator=generator)
    prototypes = 1e-22 * torch.rand(5, 64, generator=generator)
    expected = reference.nearest_patch(
        features.double(), prototypes.double(), metric, "linear", 1e-4
    )
    device = implementation.device
    found = implementation.nearest_patch(
        features.to(device), prototypes.to(device), metric=metric, similarity="linear"
    )
    torch.testing.assert_close(found.distances.cpu().double(), expected[1], rtol=1e-6, atol=0)
