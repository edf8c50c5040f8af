"""Prototypes of several patches, [P, D, h, w]: compared with windows, which are never unfolded."""

from collections.abc import Callable

import pytest
import torch
from cases import (
    EPS,
    LAYOUTS,
    METRICS,
    PAIRS,
    WINDOWS,
    Shape,
    check_against_truth,
    random_problem,
    search_windows,
    window_problem,
)
from implementations import Implementation
from torch import Tensor, nn
from torch.nn.functional import unfold

from protofast.export import decompositions
from protofast.ops import (
    NearestPatch,
    distance_map,
    dot_and_cosine,
    focal_similarity,
    mean_distance,
    nearest_patch,
    nearest_patches,
    similarity_map,
)
from protofast.ops.arguments import grid_of
from protofast.ops.packed_prototypes import nearest_patch_packed, pack_prototypes

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def unfolded(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, D*h*w, H-h+1, W-w+1] and prototypes [P, D*h*w]."""
    windows = unfold(features, prototypes.shape[2:])
    return windows.unflatten(2, grid_of(features, prototypes)), prototypes.flatten(1)


def same_bits(found: NearestPatch, expected: NearestPatch) -> bool:
    return all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(-7.0), b.nan_to_num(-7.0))
        for a, b in zip(found, expected, strict=True)
    )


# ------------------------------------------------------------------ forward


@pytest.mark.parametrize(("metric", "similarity"), PAIRS)
def test_the_nearest_window(implementation: Implementation, metric: str, similarity: str) -> None:
    for window in WINDOWS:
        features, prototypes = window_problem(window, device=implementation.device)
        found = search_windows(implementation, features, prototypes, metric, similarity)
        flat = unfolded(features, prototypes)
        check_against_truth(found, *flat, metric, similarity, implementation)
        maps = distance_map(*(tensor.double() for tensor in flat), metric=metric)
        assert torch.equal(found.locations, maps.flatten(2).argmin(2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_in_every_layout(implementation: Implementation, layout: str) -> None:
    arrange = LAYOUTS[layout]
    for window in WINDOWS:
        features, prototypes = window_problem(window, device=implementation.device)
        expected = search_windows(implementation, features, prototypes)
        assert same_bits(search_windows(implementation, arrange(features), prototypes), expected)
        assert same_bits(search_windows(implementation, features, arrange(prototypes)), expected)


@pytest.mark.parametrize("of_prototypes", DTYPES, ids=str)
@pytest.mark.parametrize("of_features", DTYPES, ids=str)
def test_dtypes_are_read_exactly(
    implementation: Implementation, of_features: torch.dtype, of_prototypes: torch.dtype
) -> None:
    features, prototypes = window_problem((2, 3), device=implementation.device)
    features, prototypes = features.to(of_features), prototypes.to(of_prototypes)
    prototypes[:3] = features[:, :, 2:4, 1:4].to(of_prototypes)
    wide = torch.float64 if torch.float64 in (of_features, of_prototypes) else torch.float32
    for arrange in (LAYOUTS["contiguous"], LAYOUTS["channels_last"]):
        found = search_windows(implementation, arrange(features), prototypes)
        expected = search_windows(implementation, features.to(wide), prototypes.to(wide))
        if implementation.device.type == "cpu":
            assert same_bits(found, expected)
        assert found.distances.dtype == wide
        if prototypes[:3].equal(features[:, :, 2:4, 1:4]):
            assert (found.distances.diagonal() == 0).all()
            assert (found.locations.diagonal() == 2 * 3 + 1).all()


def test_the_first_of_equal_windows_wins(implementation: Implementation) -> None:
    features, prototypes = window_problem((2, 2), Shape(2, 6, 33, 6, 5))
    features[:, :, 3:] = features[:, :, :3]  # the lower half repeats the upper one
    prototypes[:4] = torch.stack([features[1, :, 3:5, i : i + 2] for i in range(4)])
    features, prototypes = features.to(implementation.device), prototypes.to(implementation.device)
    found = search_windows(implementation, features, prototypes)
    assert (found.distances[1, :4] == 0).all()
    torch.testing.assert_close(
        found.activations[1, :4].cpu(), torch.full((4,), EPS).log().neg(), rtol=1e-6, atol=0
    )
    assert found.locations[1, :4].tolist() == [0, 1, 2, 3]
    flat = search_windows(implementation, torch.full_like(features, 0.3), prototypes)
    assert (flat.locations == 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_nan_and_infinity_stay_in_their_windows(
    implementation: Implementation, metric: str
) -> None:
    features, prototypes = window_problem((2, 3), device=implementation.device)
    before = search_windows(implementation, features, prototypes, metric, "linear")
    features[1, 4, 2, 4] = torch.nan
    found = search_windows(implementation, features, prototypes, metric, "linear")
    assert found.distances[1].isnan().all()
    assert (found.locations[1] == 1 * 3 + 2).all()  # the first that reaches row 2
    for image in (0, 2):
        for a, b in zip(found, before, strict=True):
            assert torch.equal(a[image], b[image])
    if metric.endswith("l2"):
        features[1, 4, 2, 4] = torch.inf
        found = search_windows(implementation, features, prototypes, metric, "linear")
        assert found.distances[1].isfinite().all()
        assert not torch.isin(found.locations[1].cpu(), torch.tensor([5, 8])).any()


def test_neither_batch_nor_threads_change_a_bit(
    implementation: Implementation, two_threads: None
) -> None:
    features, prototypes = window_problem((3, 2), Shape(17, 40, 65, 7, 7))
    features, prototypes = features.to(implementation.device), prototypes.to(implementation.device)
    whole = search_windows(implementation, features, prototypes)
    torch.set_num_threads(1)
    assert same_bits(search_windows(implementation, features, prototypes), whole)
    for n in (0, 16):
        one = search_windows(implementation, features[n : n + 1], prototypes)
        for a, b in zip(one, whole, strict=True):
            assert torch.equal(a[0], b[n])


# ------------------------------------------------------------------ related operators, PyTorch


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("window", [(1, 1), (2, 1), (3, 3), (4, 5)])
def test_the_same_as_a_loop_over_windows(window: tuple[int, int], metric: str) -> None:
    (height, width), (features, prototypes) = window, window_problem(window)
    features, prototypes = features.double(), prototypes.double()
    maps = distance_map(features, prototypes, metric=metric)
    rows, columns = 4 - height + 1, 5 - width + 1
    assert maps.shape == (3, 20, rows, columns)
    for row in range(rows):
        for column in range(columns):
            some = features[:, :, row : row + height, column : column + width]
            expected = distance_map(some.reshape(3, -1, 1, 1), prototypes.flatten(1), metric=metric)
            torch.testing.assert_close(maps[:, :, row, column], expected[..., 0, 0])
    found = nearest_patch(features, prototypes, metric=metric, similarity="linear")
    torch.testing.assert_close(found.distances, maps.amin((2, 3)))
    assert torch.equal(found.locations, maps.flatten(2).argmin(2))


def test_one_by_one_prototypes_are_the_flat_ones() -> None:
    features, prototypes = random_problem(Shape(2, 5, 3, 4, 4))
    found = nearest_patch(features, prototypes[:, :, None, None])
    assert same_bits(found, nearest_patch(features, prototypes))


@pytest.mark.parametrize("window", WINDOWS)
def test_related_operators(window: tuple[int, int]) -> None:
    features, prototypes = window_problem(window)
    flat = unfolded(features, prototypes)
    k = min(3, flat[0].shape[2] * flat[0].shape[3])
    for a, b in (
        *zip(nearest_patches(features, prototypes, k), nearest_patches(*flat, k), strict=True),
        *zip(dot_and_cosine(features, prototypes), dot_and_cosine(*flat), strict=True),
        (mean_distance(features, prototypes), mean_distance(*flat)),
        (focal_similarity(features, prototypes), focal_similarity(*flat)),
        (similarity_map(features, prototypes), similarity_map(*flat)),
    ):
        torch.testing.assert_close(a, b)
    same = features[:, :, :1, :1].expand_as(features)  # every window equals the prototypes
    means = mean_distance(same, same[:1, :, : window[0], : window[1]])
    assert means[0, 0] == 0


# opcheck itself looks at the gradients of its copies of inputs with gaps.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_opcheck() -> None:
    features, prototypes = window_problem((2, 2), Shape(2, 6, 3, 4, 5))
    leaves = features.requires_grad_(), prototypes[::2].requires_grad_()
    options = ("l2", "log", 1e-4, "float32", "auto")
    torch.library.opcheck(torch.ops.protofast.nearest_patch.default, (*leaves, *options))


def test_gradcheck() -> None:
    features, prototypes = window_problem((2, 2), Shape(2, 4, 2, 3, 3))
    leaves = features.double().requires_grad_(), prototypes.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, p: nearest_patch(z, p)[:2], leaves)
    assert torch.autograd.gradcheck(lambda z, p: distance_map(z, p), leaves)


def test_compile_without_graph_breaks() -> None:
    def loss(features: Tensor, prototypes: Tensor) -> Tensor:
        maps = similarity_map(features, prototypes)
        return nearest_patch(features, prototypes).activations.sum() + maps.sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for inputs in (window_problem((2, 3)), window_problem((2, 3), Shape(5, 7, 9, 4, 5))):
        ours = tuple(tensor.clone().requires_grad_() for tensor in inputs)
        theirs = tuple(tensor.clone().requires_grad_() for tensor in inputs)
        got, expected = compiled(*ours), loss(*theirs)
        torch.testing.assert_close(got, expected)
        got.backward()
        expected.backward()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


class Everything(nn.Module):
    """The values of every operator that `decompositions()` knows."""

    def __init__(self, prototypes: Tensor) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(prototypes)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        both = dot_and_cosine(features, self.prototypes)
        return (
            *nearest_patch(features, self.prototypes),
            *nearest_patches(features, self.prototypes, 2),
            both.dots,
            both.cosines,
            distance_map(features, self.prototypes),
        )


# torch 2.13 warns of itself.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
def test_export_without_operators_of_ours() -> None:
    features, prototypes = window_problem((2, 3))
    module = Everything(prototypes)
    shapes = {"features": {0: torch.export.Dim("N", min=1, max=64)}}
    program = torch.export.export(module, (features[:2],), dynamic_shapes=shapes)
    program = program.run_decompositions(decompositions())
    assert not [node for node in program.graph.nodes if "protofast" in str(node.target)]
    for a, b in zip(program.module()(features), module(features), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize("function", [nearest_patch, distance_map, mean_distance, similarity_map])
def test_arguments_are_checked(function: Callable[..., object]) -> None:
    prototypes = torch.rand(6, 3, 2, 2)
    with pytest.raises(TypeError, match=r"features must be float16.*got torch.int64"):
        function(torch.ones(2, 3, 4, 5, dtype=torch.int64), prototypes)
    with pytest.raises(TypeError, match=r"features must be dense .*got torch.sparse_coo"):
        function(torch.ones(2, 3, 4, 5).to_sparse(), prototypes)
    with pytest.raises(ValueError, match=r"at least one channel .*got features \[2, 0, 4, 5\]"):
        function(torch.ones(2, 0, 4, 5), torch.ones(6, 0, 2, 2))
    with pytest.raises(ValueError, match=r"expected features .*got features \[3, 4, 5\]"):
        function(torch.ones(3, 4, 5), prototypes)


def test_windows_that_do_not_fit() -> None:
    features, _ = random_problem(Shape(2, 1, 3, 4, 5))
    options = ("squared_l2", "log", 1e-4, "float32", "auto")
    for size in ((5, 1), (1, 6), (0, 2)):
        height, width = size
        message = f"prototypes of {height} x {width} patches do not fit a grid of 4 x 5"
        with pytest.raises(ValueError, match=message):
            nearest_patch(features, torch.rand(6, 3, *size))
        with pytest.raises((ValueError, RuntimeError), match="fit"):
            torch.ops.protofast.nearest_patch(features, torch.rand(6, 3, *size), *options)
    with pytest.raises(
        ValueError, match=r"same depth D; got 3 and 2.*\[2, 3, 4, 5\].*\[6, 2, 2, 2\]"
    ):
        nearest_patch(features, torch.rand(6, 2, 2, 2))
    with pytest.raises(ValueError, match="number of locations, 2 x 3; got 7"):
        nearest_patches(features, torch.rand(6, 3, 3, 3), 7)


def test_locations_of_windows_are_checked() -> None:
    features, prototypes = window_problem((2, 2))
    found = nearest_patch(features, prototypes)
    wrong = found.locations.clone()
    wrong[1, 3] = 3 * 4
    with pytest.raises((IndexError, RuntimeError), match=r"locations must lie in \[0, 12\)"):
        torch.ops.protofast.nearest_patch_backward(
            None,
            found.distances,
            features,
            prototypes,
            found.distances,
            wrong,
            "l2",
            "log",
            1e-4,
            True,
            True,
        )


def test_packed_prototypes_are_single_patches() -> None:
    features, prototypes = window_problem((2, 2))
    with pytest.raises(ValueError, match=r"prototypes must be \[P, D\]; got \[20, 9, 2, 2\]"):
        pack_prototypes(prototypes)
    packed = pack_prototypes(prototypes.flatten(1))
    with pytest.raises(ValueError, match=r"prototypes must be \[P, D\]; got \[20, 9, 2, 2\]"):
        nearest_patch_packed(features, prototypes, packed)
