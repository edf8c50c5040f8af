"""masked_view: exact masks at every awkward size, what is shown, gradients, reused memory."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from implementations import Implementation, Reference
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from protofast.ops import MaskedView, ViewMemory, masked_view, masked_view_out
from protofast.ops import reference_masked_view as reference

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# N, K, channels, H, W, S, T
SIZES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 3, 7, 7, 32, 32),
    (1, 2, 4, 1, 1, 9, 5),
    (2, 1, 1, 2, 5, 1, 40),
    (1, 3, 3, 5, 1, 33, 1),
    (3, 2, 3, 14, 14, 30, 61),
    (1, 2, 1, 8, 9, 5, 4),  # smaller than its map
    (2, 2, 3, 3, 3, 31, 35),
]


def problem(
    n: int,
    k: int,
    channels: int,
    h: int,
    w: int,
    s: int,
    t: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: object = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, channels, s, t, generator=generator)
    maps = torch.randn(n, k, h, w, generator=generator)
    return images.to(device, dtype), maps.to(device)


def run(
    implementation: Implementation,
    images: Tensor,
    maps: Tensor,
    quantile: float = 0.9,
    fill: Tensor | None = None,
) -> MaskedView:
    if isinstance(implementation, Reference):
        return MaskedView(*reference.masked_view(images, maps, quantile, fill))
    with implementation.active():
        return masked_view(images, maps, quantile=quantile, fill=fill)


def expected_views(images: Tensor, masks: Tensor, fill: Tensor | None) -> Tensor:
    """What the masks show, one image and channel after another."""
    n, channels, s, t = images.shape
    each = masks.view(n, -1, 1, s, t) if n else masks.view(0, 1, 1, s, t)
    colour = images.new_zeros(channels) if fill is None else fill.to(images.dtype)
    shown = torch.where(each, images.unsqueeze(1), colour.view(-1, 1, 1))
    return shown.flatten(0, 1)


# ---------------------------------------------------------------- the reference


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_reference_upsamples_as_interpolate_does(sizes: tuple[int, ...]) -> None:
    _, maps = problem(*sizes)
    s, t = sizes[5:]
    expected = F.interpolate(maps.double(), size=(s, t), mode="bilinear", align_corners=False)
    torch.testing.assert_close(reference.upsample(maps.double(), s, t), expected)
    assert (reference.upsample(maps, s, t) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.9, 0.975, 1.0])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_reference_is_strictly_above_torch_quantile(
    sizes: tuple[int, ...], quantile: float
) -> None:
    """With torch's own quantile of the float32 values, taken in float64."""
    images, maps = problem(*sizes)
    maps[0, 0] = maps[0, 0].round()  # ties
    values = reference.upsample(maps, *images.shape[2:]).double().flatten(2)
    limit = torch.quantile(values, quantile, dim=2, keepdim=True)
    _, masks = reference.masked_view(images, maps, quantile, None)
    assert torch.equal(masks.flatten(1), (values > limit).flatten(0, 1))


def test_against_interpolate_quantile_and_mask_in_float64() -> None:
    """The whole definition in other words; here no value lies so near that rounding decides."""
    images, maps = problem(2, 5, 3, 7, 7, 224, 224, dtype=torch.float64)
    up = F.interpolate(maps.double(), size=(224, 224), mode="bilinear", align_corners=False)
    limit = torch.quantile(up.flatten(2), 0.9, dim=2)[..., None, None]
    shown = torch.where((up > limit).unsqueeze(2), images.unsqueeze(1), 0.0)
    got = masked_view(images, maps)
    assert torch.equal(got.masks, (up > limit).flatten(0, 1))
    assert torch.equal(got.views, shown.flatten(0, 1))
    shares = got.masks.float().mean(dim=(1, 2))
    assert ((shares > 0.099) & (shares <= 0.1 + 1e-4)).all()  # less than a tenth where values tie


# ---------------------------------------------------------------- every implementation


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_masks_are_the_references_bit_for_bit(
    implementation: Implementation, sizes: tuple[int, ...], quantile: float
) -> None:
    images, maps = problem(*sizes, device=implementation.device)
    fill = torch.linspace(-1, 1, images.shape[1], device=implementation.device)
    got = run(implementation, images, maps, quantile, fill)
    _, masks = reference.masked_view(images, maps, quantile, fill)
    assert torch.equal(got.masks, masks)
    assert torch.equal(got.views, expected_views(images, masks, fill))


@pytest.mark.parametrize("of_maps", DTYPES, ids=str)
@pytest.mark.parametrize("of_images", DTYPES, ids=str)
def test_dtypes(
    implementation: Implementation, of_images: torch.dtype, of_maps: torch.dtype
) -> None:
    images, maps = problem(2, 3, 3, 5, 4, 33, 20, dtype=of_images, device=implementation.device)
    maps = maps.to(of_maps)
    fill = torch.tensor([0.1, 0.2, 0.3], device=implementation.device).to(of_images)
    got = run(implementation, images, maps, 0.8, fill)
    masks = reference.masked_view(images, maps, 0.8, fill)[1]
    assert got.views.dtype == of_images
    assert got.masks.dtype == torch.bool
    assert torch.equal(got.masks, masks)
    assert torch.equal(got.views, expected_views(images, masks, fill))


def hard_maps() -> Iterator[tuple[str, Tensor]]:
    """Maps [1, 1, 6, 6] that a search by histogram finds hard."""
    generator = torch.Generator().manual_seed(3)
    smooth = torch.randn(1, 1, 6, 6, generator=generator)
    yield "plateau", smooth.clamp(min=1.0)
    yield "steps", smooth.round()
    yield "one peak", smooth + 1e30 * (torch.arange(36) == 14).view(1, 1, 6, 6)
    yield "tiny", smooth * 1e-43
    yield "a wide range", smooth.sign() * torch.exp(20 * smooth)
    yield "huge", smooth.tanh() * 1.6e38
    yield "almost flat", 1 + smooth * 1e-7
    yield "two values", (smooth > 0).float()


@pytest.mark.parametrize("quantile", [0.02, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", [name for name, _ in hard_maps()])
def test_hard_maps(implementation: Implementation, name: str, quantile: float) -> None:
    maps = dict(hard_maps())[name].to(implementation.device)
    images = torch.rand(1, 1, 150, 140, device=implementation.device)
    got = run(implementation, images, maps, quantile)
    assert torch.equal(got.masks, reference.masked_view(images, maps, quantile, None)[1])


@pytest.mark.parametrize("quantile", [0.0, 0.9])
def test_flat_maps_show_nothing(implementation: Implementation, quantile: float) -> None:
    images, maps = problem(2, 2, 3, 7, 5, 37, 29, device=implementation.device)
    maps[:] = 0.1  # not a binary fraction: weights that sum to 1 only nearly would show through
    got = run(implementation, images, maps, quantile)
    assert not got.masks.any()
    assert (got.views == 0).all()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 3e38])
def test_a_map_that_is_not_finite_shows_nothing(
    implementation: Implementation, wrong: float
) -> None:
    images, maps = problem(1, 3, 1, 4, 4, 16, 16, device=implementation.device)
    good = run(implementation, images, maps, 0.5)
    maps[0, 1, 2, 3] = wrong
    got = run(implementation, images, maps, 0.5)
    assert not got.masks[1].any()
    assert torch.equal(got.masks[::2], good.masks[::2])  # the maps beside it are as before
    assert good.masks.any()


def test_nan_in_an_image_stays_where_it_is_shown(implementation: Implementation) -> None:
    images, maps = problem(1, 1, 2, 3, 3, 20, 20, device=implementation.device)
    images[:, 1] = math.nan
    got = run(implementation, images, maps)
    assert torch.equal(got.views[:, 1].isnan(), got.masks)
    assert got.views[:, 0].isfinite().all()


@pytest.mark.parametrize(("n", "k"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_do(implementation: Implementation, n: int, k: int) -> None:
    images, maps = problem(n, k, 3, 7, 7, 8, 9, device=implementation.device)
    got = run(implementation, images, maps)
    assert got.views.shape == (0, 3, 8, 9)
    assert got.masks.shape == (0, 8, 9)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_random_problems(implementation: Implementation, data: st.DataObject) -> None:
    few, side = st.integers(1, 3), st.integers(1, 40)
    sizes = [data.draw(few), data.draw(few), data.draw(few)]
    sizes += [data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))]
    sizes += [data.draw(side), data.draw(side)]
    seed = data.draw(st.integers(0, 2**31))
    images, maps = problem(*sizes, device=implementation.device, seed=seed)
    maps = maps * data.draw(st.sampled_from([1.0, 1.0, 1e-40, 1e30]))
    maps = maps + data.draw(st.sampled_from([0.0, 100.0, -1e6]))
    if data.draw(st.booleans()):
        maps = maps.round()
    maps = maps.to(data.draw(st.sampled_from(DTYPES)))
    quantile = data.draw(st.floats(0, 1))
    got = run(implementation, images, maps, quantile)
    masks = reference.masked_view(images, maps, quantile, None)[1]
    assert torch.equal(got.masks, masks)
    assert torch.equal(got.views, expected_views(images, masks, None))


def test_more_views_than_a_grid_has_rows(implementation: Implementation) -> None:
    images, maps = problem(1, 70000, 1, 1, 2, 1, 4, device=implementation.device)
    got = run(implementation, images, maps, 0.5)
    rising = maps[0, :, 0, 0] < maps[0, :, 0, 1]
    assert torch.equal(got.masks[:, 0, 3], rising)
    assert torch.equal(got.masks[:, 0, 0], ~rising)


def layouts(tensor: Tensor) -> Iterator[Tensor]:
    """The same numbers, elsewhere in memory."""
    yield tensor.contiguous(memory_format=torch.channels_last)
    yield tensor.repeat_interleave(2, 1)[:, ::2]
    yield F.pad(tensor, (1, 2, 1, 0))[..., 1:, 1:-2]
    yield tensor.mT.contiguous().mT
    yield torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    yield tensor.repeat_interleave(2, 0)[::2]


def test_any_layout_in_contiguous_out(implementation: Implementation) -> None:
    images, maps = problem(2, 3, 3, 4, 5, 24, 20, device=implementation.device)
    expected = run(implementation, images, maps)
    for some_images in layouts(images):
        for some_maps in layouts(maps):
            got = run(implementation, some_images, some_maps)
            assert torch.equal(got.views, expected.views)
            assert torch.equal(got.masks, expected.masks)
            assert got.views.is_contiguous()
            assert got.masks.is_contiguous()


def test_one_image_seen_as_many(implementation: Implementation) -> None:
    images, maps = problem(1, 4, 3, 4, 5, 24, 20, device=implementation.device)
    got = run(implementation, images.expand(4, -1, -1, -1), maps.view(4, 1, 4, 5))
    assert torch.equal(got.views, run(implementation, images, maps).views)


def test_neither_threads_nor_the_batch_change_a_bit(
    implementation: Implementation, two_threads: None
) -> None:
    images, maps = problem(3, 4, 3, 7, 7, 100, 90, device=implementation.device)
    grad = torch.randn(12, 3, 100, 90, generator=torch.Generator().manual_seed(1))
    grad = grad.to(implementation.device)
    expected = run(implementation, images, maps)
    with implementation.active():
        backward = reference.masked_view_backward
        if not isinstance(implementation, Reference):
            backward = torch.ops.protofast.masked_view_backward
        of_images = backward(grad, expected.masks.unflatten(0, (3, 4)))
        for threads in (1, 3):
            torch.set_num_threads(threads)
            got = run(implementation, images, maps)
            assert torch.equal(got.views, expected.views)
            assert torch.equal(got.masks, expected.masks)
            assert torch.equal(backward(grad, got.masks.unflatten(0, (3, 4))), of_images)
    for n in range(3):
        for k in range(4):
            one = run(implementation, images[n : n + 1], maps[n : n + 1, k : k + 1])
            assert torch.equal(one.views[0], expected.views[4 * n + k])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_the_shown_ones_added_up(
    implementation: Implementation, dtype: torch.dtype
) -> None:
    images, maps = problem(2, 3, 3, 4, 5, 24, 21, dtype=dtype, device=implementation.device)
    masks = run(implementation, images, maps, 0.6).masks.unflatten(0, (2, 3))
    grad = torch.randn(6, 3, 24, 21, generator=torch.Generator().manual_seed(1))
    grad = grad.to(implementation.device, dtype)
    grad[~masks.flatten(0, 1).unsqueeze(1).expand_as(grad)] = math.nan  # must not be looked at
    if isinstance(implementation, Reference):
        got = reference.masked_view_backward(grad, masks)
    else:
        with implementation.active():
            got = torch.ops.protofast.masked_view_backward(grad, masks)
    assert got.dtype == dtype
    assert got.shape == images.shape
    wide = torch.where(masks.unsqueeze(2), grad.unflatten(0, (2, 3)).double(), 0.0).sum(1)
    rtol = 1e-2 if dtype.itemsize == 2 else 1e-6
    torch.testing.assert_close(got.double(), wide, rtol=rtol, atol=1e-6)
    assert torch.equal(got, reference.masked_view_backward(grad, masks))


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
