"""What is particular to GPUs: the paths against each other, precision, refine, graphs, large grids.

The other tests of this folder run on every path too (conftest.py).
"""

import pytest
import torch
from cases import METRICS, SHAPES, Shape, put_patches_into_prototypes, random_problem, truth
from implementations import Cuda
from torch import Tensor

from protofast.ops import NearestPatch, nearest_patch

# Sizes around the kernels' tiles: 128 prototypes, 2 images, 56 patches, chunks of 64 channels.
TILES = [
    Shape(1, 1, 1, 1, 1),
    Shape(3, 129, 64, 7, 7),
    Shape(2, 127, 65, 7, 8),
    Shape(5, 300, 128, 3, 19),
    Shape(4, 200, 512, 14, 14),
    Shape(2, 64, 96, 28, 28),
]


def problem(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    features, prototypes = random_problem(shape, dtype=dtype, device="cuda")
    put_patches_into_prototypes(features, prototypes[::2])
    return features, prototypes


def similarity_for(metric: str) -> str:
    return "log" if metric.endswith("l2") else "linear"


def same(got: NearestPatch, expected: NearestPatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [*TILES, *SHAPES], ids=str)
def test_refined_always_has_the_plain_paths_bits(
    path: str, shape: Shape, dtype: torch.dtype, metric: str
) -> None:
    features, prototypes = problem(shape, dtype)
    for rows in (prototypes, prototypes.float()):
        for layout in (torch.contiguous_format, torch.channels_last):
            images = features.contiguous(memory_format=layout)
            arguments = (images, rows, metric, similarity_for(metric))
            got = Cuda(path, refine="always").nearest_patch(*arguments)
            assert same(got, Cuda("plain").nearest_patch(*arguments))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", TILES, ids=str)
def test_gradients_by_buckets_have_the_plain_paths_bits(
    path: str, shape: Shape, metric: str
) -> None:
    features, prototypes = problem(shape)
    found = Cuda("plain").nearest_patch(features, prototypes, metric, similarity_for(metric))
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(found.distances.shape, generator=generator).cuda() for _ in range(2)]
    rest = (found.distances, found.locations, metric, similarity_for(metric), 1e-4, True, True)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = features.contiguous(memory_format=layout)
        arguments = (*grads, images, prototypes, *rest)
        got = Cuda(path).nearest_patch_backward(*arguments)
        expected = Cuda("plain").nearest_patch_backward(*arguments)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("refine", ["auto", "always", "never"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "half"])
def test_every_precision_and_refinement_finds_near_patches(
    path: str, precision: str, refine: str, metric: str
) -> None:
    features, prototypes = problem(Shape(4, 300, 128, 7, 7))
    run = Cuda(path, precision, refine)
    found = run.nearest_patch(features, prototypes, metric, similarity_for(metric))
    exact = truth(features, prototypes, metric)
    here = exact.maps.gather(2, found.locations.unsqueeze(2)).squeeze(2)
    regret = here - exact.least if metric != "l2" else here.square() - exact.least.square()
    of_selection = 1e-5 if precision != "half" else 2.0**-8
    assert (regret <= of_selection * exact.norms).all()
    if refine == "never":  # the selection's own numbers
        error = found.distances - here if metric != "l2" else found.distances.square() - here**2
        assert (error.abs() <= of_selection * exact.norms).all()
    else:
        scale = exact.norms if metric in ("dot", "cosine") else here
        assert ((found.distances - here).abs() <= 1e-4 * scale).all()
        if metric.endswith("l2"):  # every second prototype is a patch
            assert (found.distances == 0).any(0)[::2].all()


def test_tf32_switches_change_nothing(path: str) -> None:
    features, prototypes = problem(Shape(3, 100, 128, 7, 7))
    expected = Cuda(path).nearest_patch(features, prototypes)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            assert same(Cuda(path).nearest_patch(features, prototypes), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_graph_captures_forward_and_backward(path: str) -> None:
    features, prototypes = problem(Shape(4, 100, 64, 7, 7))
    run = Cuda(path)
    prototypes.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        with run.active():
            found = nearest_patch(features, prototypes)
            (grad,) = torch.autograd.grad(found.activations.sum(), prototypes)
        return found.distances, grad

    expected = step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    features.zero_()
    graph.replay()
    assert not torch.equal(captured[0], expected[0])
    features.copy_(problem(Shape(4, 100, 64, 7, 7))[0])
    graph.replay()
    for a, b in zip(captured, expected, strict=True):
        assert torch.equal(a, b)


def test_it_runs_on_the_current_stream(path: str) -> None:
    features, prototypes = problem(Shape(8, 500, 128, 7, 7))
    expected = Cuda(path).nearest_patch(features, prototypes)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(features)
        torch.cuda._sleep(50_000_000)
        late.copy_(features)
        found = Cuda(path).nearest_patch(late, prototypes)
    torch.cuda.current_stream().wait_stream(stream)
    assert same(found, expected)


def test_more_than_65535_blocks(path: str) -> None:
    features, prototypes = problem(Shape(140_000, 3, 16, 4, 4))
    found = Cuda(path).nearest_patch(features, prototypes)
    assert same(found, Cuda("plain").nearest_patch(features, prototypes))


def test_more_than_two_to_the_31_scores(path: str) -> None:
    features, prototypes = problem(Shape(256, 43_000, 16, 14, 14))
    found = Cuda(path, refine="always").nearest_patch(features, prototypes)
    last = slice(42_900, None)
    expected = Cuda("plain").nearest_patch(features[-3:], prototypes[last])
    assert same(NearestPatch(*(tensor[-3:, last] for tensor in found)), expected)


def test_an_unknown_path_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, prototypes = problem(Shape(1, 2, 3, 2, 2))
    monkeypatch.setenv("PROTOFAST_GPU", "wgmna")
    message = "PROTOFAST_GPU must be unset, plain, tensor_cores or wgmma; got 'wgmna'"
    with pytest.raises(RuntimeError, match=message):
        nearest_patch(features, prototypes)
