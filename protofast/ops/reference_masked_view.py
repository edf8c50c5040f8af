"""`masked_view` in plain PyTorch: what is right, and what runs where no compiled kernel does.

Masks are exact: compiled kernels give the same bits. For that the rounding order is fixed. A map is
up-sampled along its width first, then along its height, each time as a + weight * (b - a), rounded
after each of the three operations. Equal neighbours then give exactly their own value, so that a
flat map stays flat. Where a pixel lies between the cells is found in integers.

N images, K maps of each, H x W cells of a map, S x T pixels of an image.
"""

import torch
from torch import Tensor

# Temporary tensors are kept to about this many numbers by working on a few maps at a time.
_CHUNK_NUMBERS = 1 << 22


def upsample(maps: Tensor, height: int, width: int) -> Tensor:
    """Bilinear up-sampling (align_corners=False): [..., H, W] -> [..., S, T], in its own dtype."""
    left, right, weight = _taps(width, maps.shape[-1], maps)
    a, b = maps[..., left], maps[..., right]
    wide = a + weight * (b - a)  # [..., H, T]
    above, below, weight = _taps(height, maps.shape[-2], maps)
    a, b = wide[..., above, :], wide[..., below, :]
    return a + weight.unsqueeze(-1) * (b - a)


def above_quantile(maps: Tensor, height: int, width: int, quantile: float) -> Tensor:
    """Where each up-sampled map lies strictly above its quantile: [K, H, W] -> bool [K, S, T].

    The quantile is that of `torch.quantile` (linear): between the values a and b that follow one
    another in ascending order at the rank quantile * (S * T - 1), rounded down and up. It is at
    least a and, unless it is b itself, below b, and no value lies between them: the pixels above it
    are those above a. So only the order of the values counts, and no rounding of the quantile.

    A flat map has nothing above. Nor has, by definition, a map that holds NaN, an infinity or a
    number beyond half of the largest of its dtype, whose differences could overflow.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    values = upsample(maps, height, width)  # [K, S, T]
    rank = int(quantile * (height * width - 1))
    lower = values.flatten(1).sort(dim=1).values[:, rank]  # [K]
    usable = torch.isfinite(2 * maps).flatten(1).all(1)  # [K]
    return (values > lower.view(-1, 1, 1)) & usable.view(-1, 1, 1)


def masked_view(
    images: Tensor, maps: Tensor, quantile: float, fill: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Images [N, channels, S, T], maps [N, K, H, W] -> views and masks of N * K, image by image."""
    count = maps.shape[0] * maps.shape[1]
    views = images.new_empty((count, *images.shape[1:]))
    masks = images.new_empty((count, *images.shape[2:]), dtype=torch.bool)
    masked_view_out(images, maps, quantile, fill, views, masks)
    return views, masks


def masked_view_out(
    images: Tensor,
    maps: Tensor,
    quantile: float,
    fill: Tensor | None,
    views: Tensor,
    masks: Tensor,
) -> None:
    """As `masked_view`, into views [N * K, channels, S, T] and masks [N * K, S, T]."""
    height, width = images.shape[2:]
    colour = images.new_zeros(images.shape[1]) if fill is None else fill
    step = max(1, _CHUNK_NUMBERS // (height * width))
    first = 0
    for image, of_image in zip(images, maps, strict=True):
        for some in of_image.split(step) if len(of_image) > 0 else ():
            chosen = above_quantile(some, height, width, quantile)  # [k, S, T]
            shown = torch.where(chosen.unsqueeze(1), image, colour.view(-1, 1, 1))
            views[first : first + len(some)] = shown
            masks[first : first + len(some)] = chosen
            first += len(some)


def masked_view_backward(grad_views: Tensor, masks: Tensor) -> Tensor:
    """Gradient for the images [N, channels, S, T]: that of their views where these show them.

    grad_views [N * K, channels, S, T], masks [N, K, S, T]. Added up over the K views of an image in
    their order, in float32 at least, and rounded once.
    """
    images, count = masks.shape[:2]
    dtype = torch.promote_types(grad_views.dtype, torch.float32)
    shape = (images, *grad_views.shape[1:])
    grad = torch.zeros(shape, dtype=dtype, device=grad_views.device)
    for k in range(count):
        shown = masks[:, k].unsqueeze(1)  # [N, 1, S, T]
        grad += torch.where(shown, grad_views[k::count].to(dtype), 0.0)
    return grad.to(grad_views.dtype)


def _taps(pixels: int, cells: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells that each pixel lies between, and the weight of the second; [pixels] each.

    Pixel i lies at (i + 1/2) * cells / pixels - 1/2, at 0 at least; the last cell is its own
    neighbour.
    """
    i = torch.arange(pixels, device=like.device)
    place = ((2 * i + 1) * cells - pixels).clamp(min=0)  # times 2 * pixels
    first = place // (2 * pixels)
    weight = (place % (2 * pixels)).double() / (2 * pixels)
    return first, (first + 1).clamp(max=cells - 1), weight.to(like.dtype)
