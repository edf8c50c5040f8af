"""masked_view: exact masks at every awkward size, what is shown, gradients."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from implementations import Implementation, Reference
from masked_views import DTYPES, SIZES, expected_views, problem, run
from torch import Tensor
from torch.nn import functional as F

from protofast.ops import masked_view
from protofast.ops import reference_masked_view as reference

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
