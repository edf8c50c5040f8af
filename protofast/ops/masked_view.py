"""`masked_view`: images with all but their most activated part covered, for a second pass."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protofast.ops import _library
from protofast.ops import reference_masked_view as reference
from protofast.ops.arguments import check_floating

Fill = Tensor | Sequence[float] | None


class MaskedView(NamedTuple):
    """What `masked_view` returns.

    views: [N*K, channels, S, T], the images where their mask is true, else the fill.
    masks: bool [N*K, S, T].
    """

    views: Tensor
    masks: Tensor


def masked_view(
    images: Tensor, maps: Tensor, *, quantile: float = 0.9, fill: Fill = None
) -> MaskedView:
    """Show of every image, once for each of its maps, the pixels where the map is high.

    Each map is up-sampled bilinearly (align_corners=False) to the size of the image; shown is what
    lies strictly above its exact `quantile` (as `torch.quantile` defines it, linear). The
    up-sampled maps are never stored. For all images and prototypes at once, this makes the input of
    the second pass of the alignment loss (Sacha et al. 2024, 2308.08162).

    Args:
        images: [N, channels, S, T], float16, bfloat16, float32 or float64.
        maps: [N, K, H, W], of any of these dtypes; computed with in float32, or in float64 if they
            are.
        quantile: in [0, 1]; 0.9 shows a tenth of the pixels, 1 none.
        fill: for each channel the value of pixels that are not shown, [channels], rounded to the
            dtype of the images; None takes zeros. A model that normalises inside takes its `mean`.

    Returns:
        MaskedView(views, masks): [N*K, channels, S, T] in the dtype of the images, contiguous, and
        bool [N*K, S, T]; view n*K + k is image n under its map k. A flat map shows nothing, nor
        does one that holds NaN, an infinity or a number beyond half of its dtype's largest.
        Gradients flow to the images where they are shown; the maps get none.

    Raises:
        TypeError: an argument is no tensor, or not floating point.
        ValueError: shapes, devices or the quantile do not fit; the message states both shapes.

    Example:
        >>> images = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])  # N=1, one channel, S=1, T=4
        >>> masked_view(images, torch.tensor([[[[0.0, 1.0]]]]), quantile=0.5).views
        tensor([[[[0., 0., 3., 4.]]]])
    """
    _check(images, maps, quantile)
    colour = _fill_tensor(fill, images)
    # Maps that require a gradient would make the views require one.
    shown = torch.ops.protofast.masked_view(images, maps.detach(), quantile, colour)
    return MaskedView(*shown)


def masked_view_out(
    images: Tensor,
    maps: Tensor,
    views: Tensor,
    masks: Tensor,
    *,
    quantile: float = 0.9,
    fill: Fill = None,
) -> MaskedView:
    """`masked_view` into tensors that are there already: large fresh ones cost more than filling.

    What later needs the views, such as the backward of the network that saw them, needs this memory
    as it is: do not write to it again before. autograd notices if you do, and raises an error.

    Args:
        images: as for `masked_view`, and so `maps`, `quantile` and `fill`.
        maps: see there.
        views: [N*K, channels, S, T], contiguous, dtype and device of the images. Like `masks`, it
            may share memory with no other argument.
        masks: bool [N*K, S, T], contiguous.
        quantile: see there.
        fill: see there.

    Returns:
        MaskedView of the two given tensors.

    Raises:
        TypeError, ValueError: as `masked_view`; also if `images` want a gradient, which this form
            does not give.
    """
    _check(images, maps, quantile)
    _check_out(images, maps, views, masks)
    if torch.is_grad_enabled() and (images.requires_grad or views.requires_grad):
        raise ValueError(
            "masked_view_out gives no gradient, but images or views require one; use masked_view, "
            "or images.detach()"
        )
    colour = _fill_tensor(fill, images)
    torch.ops.protofast.masked_view_out(images, maps.detach(), quantile, colour, views, masks)
    if not torch.compiler.is_compiling():  # compiled graphs know from the operator's schema
        torch.autograd.graph.increment_version((views, masks))
    return MaskedView(views, masks)


class ViewMemory:
    """Memory for views that a training loop keeps from step to step.

    A step that needs several blocks of views until its backward takes each from another slot; the
    next step takes the same slots again. Memory grows where a block is larger than any before.
    """

    def __init__(self) -> None:
        self._slots: dict[int, Tensor] = {}

    def take(self, images: Tensor, count: int, slot: int = 0) -> Tensor:
        """`count` views of `images` [N, channels, S, T], uninitialised: [count, channels, S, T]."""
        shape = (count, *images.shape[1:])
        numbers = shape[0] * shape[1] * shape[2] * shape[3]
        memory = self._slots.get(slot)
        if (
            memory is None
            or memory.numel() < numbers
            or memory.dtype != images.dtype
            or memory.device != images.device
        ):
            memory = self._slots[slot] = images.new_empty(numbers)
        return memory[:numbers].view(shape)


def _fill_tensor(fill: Fill, images: Tensor) -> Tensor | None:
    """The fill as [channels] in the dtype of the images, without a gradient."""
    if fill is None:
        return None
    if not isinstance(fill, Tensor):
        if not isinstance(fill, Iterable):
            raise TypeError(
                "fill must be None, a tensor or a sequence of one number for each channel; got "
                f"{type(fill).__name__}"
            )
        dtype = images.dtype if images.is_floating_point() else None
        numbers = [float(value) for value in fill]
        fill = torch.tensor(numbers, dtype=dtype, device=images.device)
    check_floating("fill", fill)
    if fill.dim() != 1 or fill.shape[0] != images.shape[1]:
        raise ValueError(
            f"fill must have one number for each of the {images.shape[1]} channels of images "
            f"{list(images.shape)}; got {list(fill.shape)}"
        )
    if fill.device != images.device:
        raise ValueError(
            f"fill must be on the device of images, {images.device}; got {fill.device}"
        )
    return fill.detach().to(images.dtype)


def _check(images: Tensor, maps: Tensor, quantile: float) -> None:
    check_floating("images", images)
    check_floating("maps", maps)
    # The messages are put together only to be raised: torch.compile cannot print symbolic sizes.
    if images.dim() != 4 or maps.dim() != 4:
        raise ValueError("images and maps must have 4 dimensions; got " + _shapes(images, maps))
    if images.shape[0] != maps.shape[0]:
        raise ValueError(
            f"there must be maps for each image; got {images.shape[0]} images and maps for "
            f"{maps.shape[0]}: {_shapes(images, maps)}"
        )
    if 0 in images.shape[1:] or 0 in maps.shape[2:]:
        raise ValueError(
            "images need at least one channel and one pixel, maps at least one cell; got "
            + _shapes(images, maps)
        )
    if images.device != maps.device:
        raise ValueError(
            f"images and maps must be on the same device; got {images.device} and {maps.device}"
        )
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile must lie in [0, 1]; got {quantile}")


def _check_out(images: Tensor, maps: Tensor, views: Tensor, masks: Tensor) -> None:
    count = maps.shape[0] * maps.shape[1]
    wanted: dict[str, tuple[Tensor, tuple[int, ...], torch.dtype]] = {
        "views": (views, (count, *images.shape[1:]), images.dtype),
        "masks": (masks, (count, *images.shape[2:]), torch.bool),
    }
    for name, (tensor, shape, dtype) in wanted.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}")
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}; got {tensor.dtype}")
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous {list(shape)}; got {list(tensor.shape)} of strides "
                f"{list(tensor.stride())} for {_shapes(images, maps)}"
            )
        if tensor.device != images.device:
            raise ValueError(
                f"{name} must be on the device of images, {images.device}; got {tensor.device}"
            )


def _shapes(images: Tensor, maps: Tensor) -> str:
    return (
        f"images {list(images.shape)} ([N, channels, S, T]) and maps {list(maps.shape)} "
        "([N, K, H, W])"
    )


def _reference(
    images: Tensor, maps: Tensor, quantile: float, fill: Tensor | None
) -> tuple[Tensor, Tensor]:
    _check(images, maps, quantile)
    return reference.masked_view(images, maps, quantile, fill)


def _fake(
    images: Tensor, maps: Tensor, quantile: float, fill: Tensor | None
) -> tuple[Tensor, Tensor]:
    _check(images, maps, quantile)
    count = maps.shape[0] * maps.shape[1]
    return (
        images.new_empty((count, *images.shape[1:])),
        images.new_empty((count, *images.shape[2:]), dtype=torch.bool),
    )


def _reference_out(
    images: Tensor,
    maps: Tensor,
    quantile: float,
    fill: Tensor | None,
    views: Tensor,
    masks: Tensor,
) -> None:
    _check(images, maps, quantile)
    _check_out(images, maps, views, masks)
    reference.masked_view_out(images, maps, quantile, fill, views, masks)


def _fake_out(
    images: Tensor,
    maps: Tensor,
    quantile: float,
    fill: Tensor | None,
    views: Tensor,
    masks: Tensor,
) -> None:
    _check(images, maps, quantile)
    _check_out(images, maps, views, masks)


def _fake_backward(grad_views: Tensor, masks: Tensor) -> Tensor:
    return grad_views.new_empty((masks.shape[0], *grad_views.shape[1:]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    maps = inputs[1]
    _, masks = output
    ctx.save_for_backward(masks)
    ctx.count = tuple(maps.shape[:2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_views: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_views is None or not ctx.needs_input_grad[0]:
        return (None,) * 4
    (masks,) = ctx.saved_tensors
    masks = masks.unflatten(0, ctx.count)  # [N, K, S, T]
    grad = torch.ops.protofast.masked_view_backward(grad_views, masks)
    return (grad, None, None, None)


_library.declare(
    "masked_view(Tensor images, Tensor maps, float quantile, Tensor? fill) "
    "-> (Tensor views, Tensor masks)",
    _reference,
    _fake,
)
_library.declare(
    "masked_view_out(Tensor images, Tensor maps, float quantile, Tensor? fill, Tensor(a!) views, "
    "Tensor(b!) masks) -> ()",
    _reference_out,
    _fake_out,
)
_library.declare(
    "masked_view_backward(Tensor grad_views, Tensor masks) -> Tensor",
    reference.masked_view_backward,
    _fake_backward,
)
_library.differentiate("masked_view", _backward, _setup_context)
_library.refuse_second_derivative("masked_view_backward", "masked_view")
