"""masked_view inside PyTorch: reused memory, arguments, autograd, opcheck, torch.compile."""

import math
from collections.abc import Iterator

import pytest
import torch
from implementations import Implementation, Reference
from masked_views import problem, run
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from protofast.ops import ViewMemory, masked_view, masked_view_out
from protofast.ops import reference_masked_view as reference

# ---------------------------------------------------------------- memory that is reused


def test_out_writes_every_byte_of_what_it_is_given(implementation: Implementation) -> None:
    images, maps = problem(2, 3, 3, 4, 5, 24, 21, device=implementation.device)
    fill = torch.tensor([0.1, 0.2, 0.3], device=implementation.device)
    expected = run(implementation, images, maps, 0.7, fill)
    views = torch.full_like(expected.views, math.nan)
    masks = torch.ones_like(expected.masks)
    if isinstance(implementation, Reference):
        reference.masked_view_out(images, maps, 0.7, fill, views, masks)
    else:
        with implementation.active():
            got = masked_view_out(images, maps, views, masks, quantile=0.7, fill=fill)
        assert got.views is views
        assert got.masks is masks
    assert torch.equal(views, expected.views)
    assert torch.equal(masks, expected.masks)


def test_writing_again_before_the_backward_is_noticed() -> None:
    images, maps = problem(1, 2, 3, 4, 4, 16, 16)
    weight = torch.rand(2, 3, 3, 3, requires_grad=True)
    memory = ViewMemory()
    masks = torch.empty(2, 16, 16, dtype=torch.bool)
    loss = F.conv2d(masked_view_out(images, maps, memory.take(images, 2), masks).views, weight)
    masked_view_out(images, -maps, memory.take(images, 2), masks)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_memory_is_kept_per_slot_and_grows() -> None:
    images = torch.rand(2, 3, 8, 8)
    memory = ViewMemory()
    first = memory.take(images, 4)
    assert first.shape == (4, 3, 8, 8)
    assert memory.take(images, 4).data_ptr() == first.data_ptr()
    assert memory.take(images, 2).data_ptr() == first.data_ptr()
    assert memory.take(images, 4, slot=1).data_ptr() != first.data_ptr()
    larger = memory.take(images, 6)
    assert larger.shape == (6, 3, 8, 8)
    assert memory.take(images, 4).data_ptr() == larger.data_ptr()
    assert memory.take(images.double(), 4).dtype == torch.float64


def test_out_refuses_what_does_not_fit() -> None:
    images, maps = problem(2, 3, 3, 4, 5, 24, 20)
    views, masks = torch.empty(6, 3, 24, 20), torch.empty(6, 24, 20, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"views must be contiguous \[6, 3, 24, 20\]; got \[5, 3"):
        masked_view_out(images, maps, views[:5], masks)
    with pytest.raises(ValueError, match=r"masks must be contiguous .* strides \[480, 1, 24\]"):
        masked_view_out(images, maps, views, masks.view(6, 20, 24).mT)
    with pytest.raises(TypeError, match=r"views must be torch.float32; got torch.float64"):
        masked_view_out(images, maps, views.double(), masks)
    with pytest.raises(TypeError, match=r"masks must be torch.bool; got torch.uint8"):
        masked_view_out(images, maps, views, masks.byte())
    with pytest.raises(ValueError, match=r"gives no gradient.*images.detach\(\)"):
        masked_view_out(images.requires_grad_(), maps, views, masks)
    with torch.no_grad():
        masked_view_out(images, maps, views, masks)


# ---------------------------------------------------------------- arguments


def test_wrong_arguments_are_named() -> None:
    images, maps = problem(2, 3, 3, 4, 5, 24, 20)
    with pytest.raises(TypeError, match=r"images must be a torch\.Tensor; got list"):
        masked_view([1.0], maps)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"maps must be float16, .*; got torch\.int64"):
        masked_view(images, maps.long())
    with pytest.raises(ValueError, match=r"4 dimensions; got images \[3, 24, 20\] .*maps \[2, 3"):
        masked_view(images[0], maps)
    with pytest.raises(ValueError, match=r"got 2 images and maps for 1: images \[2, 3, 24, 20\]"):
        masked_view(images, maps[:1])
    with pytest.raises(ValueError, match=r"at least one cell; got .*maps \[2, 3, 0, 5\]"):
        masked_view(images, maps[:, :, :0])
    with pytest.raises(ValueError, match=r"each of the 3 channels of images .*; got \[2\]"):
        masked_view(images, maps, fill=[0.1, 0.2])
    with pytest.raises(TypeError, match=r"fill must be float16, .*; got torch\.int64"):
        masked_view(images, maps, fill=torch.tensor([1, 2, 3]))
    with pytest.raises(TypeError, match=r"one number for each channel; got float"):
        masked_view(images, maps, fill=0.5)  # type: ignore[arg-type]
    wide = masked_view(images.double(), maps, fill=[0.1, 0.1, 0.1])
    assert wide.views[0, 0][~wide.masks[0]].unique().tolist() == [0.1]
    for quantile in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"quantile must lie in \[0, 1\]; got"):
            masked_view(images, maps, quantile=quantile)


# ---------------------------------------------------------------- inside PyTorch


def sample_inputs() -> Iterator[tuple[Tensor, Tensor]]:
    images, maps = problem(2, 3, 3, 4, 5, 12, 10)
    yield images, maps
    yield images.to(memory_format=torch.channels_last), maps.double()
    yield images.bfloat16(), maps
    yield images[:0], maps[:0]
    yield images, maps[:, :0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
def test_opcheck() -> None:
    for images, maps in sample_inputs():
        fill = torch.rand(3).to(images.dtype)
        for colour in (fill, None):
            torch.library.opcheck(
                torch.ops.protofast.masked_view.default,
                (images.detach().requires_grad_(), maps.detach().requires_grad_(), 0.8, colour),
            )
        views, masks = masked_view(images, maps)
        torch.library.opcheck(
            torch.ops.protofast.masked_view_out.default, (images, maps, 0.8, fill, views, masks)
        )
        torch.library.opcheck(
            torch.ops.protofast.masked_view_backward.default,
            (views, masks.unflatten(0, maps.shape[:2])),
        )


def test_gradcheck() -> None:
    images, maps = problem(2, 3, 2, 3, 3, 5, 4, dtype=torch.float64)

    def views(images: Tensor) -> Tensor:
        return masked_view(images, maps, quantile=0.4, fill=[0.5, -0.5]).views

    assert torch.autograd.gradcheck(views, images.requires_grad_())


def test_gradients_go_to_images_alone() -> None:
    images, maps = problem(2, 3, 3, 4, 5, 12, 10)
    fill = torch.rand(3, requires_grad=True)
    images.requires_grad_()
    maps.requires_grad_()
    got = masked_view(images, maps, fill=fill)
    assert got.views.requires_grad
    assert not got.masks.requires_grad
    got.views.sum().backward()  # an expanded gradient
    assert images.grad is not None
    assert torch.equal(images.grad[:, 0], got.masks.unflatten(0, (2, 3)).sum(1).float())
    assert maps.grad is None
    assert fill.grad is None
    assert not masked_view(images.detach(), maps).views.requires_grad


def test_a_second_derivative_is_refused() -> None:
    images, maps = problem(1, 2, 1, 2, 2, 6, 6)
    images.requires_grad_()
    loss = masked_view(images, maps).views.square().sum()
    (grad,) = torch.autograd.grad(loss, images, create_graph=True)
    with pytest.raises(RuntimeError, match="masked_view has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(dynamic: bool) -> None:
    torch.compiler.reset()

    def step(images: Tensor, maps: Tensor, views: Tensor, masks: Tensor) -> Tensor:
        shown = masked_view(images, maps, quantile=0.7, fill=[0.1, 0.2, 0.3]).views
        again = masked_view_out(images.detach(), maps, views, masks).views
        return (shown.square() + again).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n, k, s in ((2, 3, 12), (3, 2, 12), (2, 3, 17)):
        images, maps = problem(n, k, 3, 4, 5, s, 10)
        results = []
        for function in (compiled, step):
            leaf = images.clone().requires_grad_()
            views = torch.empty(n * k, 3, s, 10)
            masks = torch.empty(n * k, s, 10, dtype=torch.bool)
            loss = function(leaf, maps, views, masks)
            loss.backward()
            results.append((loss.detach(), leaf.grad, views, masks))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_fake_results_have_the_real_shapes_and_strides() -> None:
    images, maps = problem(2, 3, 3, 4, 5, 12, 10, dtype=torch.float16)
    images = images.to(memory_format=torch.channels_last)

    def run(images: Tensor, maps: Tensor) -> list[Tensor]:
        images = images.detach().requires_grad_()
        got = masked_view(images, maps)
        return [*got, *torch.autograd.grad(got.views.sum(), images)]

    real = run(images, maps)
    with FakeTensorMode() as mode:
        fake = run(mode.from_tensor(images), mode.from_tensor(maps))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_deterministic_algorithms_are_accepted() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        images, maps = problem(1, 2, 1, 2, 2, 6, 6)
        masked_view(images.requires_grad_(), maps).views.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_only_masks_are_kept_for_the_backward() -> None:
    images, maps = problem(2, 3, 3, 4, 5, 12, 10)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        masked_view(images.requires_grad_(), maps)
    assert [tensor.dtype for tensor in kept] == [torch.bool]
