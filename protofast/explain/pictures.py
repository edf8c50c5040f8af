"""Images and heat maps as small picture files.

A heat map is stored as a transparent PNG that is laid over its picture, rather than blended into
it: the reader can switch it off, and each picture of the data set is stored once however often it
is shown.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

Pixels = npt.NDArray[np.uint8]

_JPEG_QUALITY = 86
FRAME = "#ffdf3d"  # of boxes
_LEVELS = 64  # shades of a stored heat map: more cannot be told apart, and cost space

# Dark and clear where the similarity is low, bright where it is high: (level, red, green, blue,
# opacity). The order of brightness is kept in grey and for every kind of colour vision.
_ANCHORS = (
    (0.00, 10, 14, 30, 0.38),
    (0.35, 58, 22, 92, 0.33),
    (0.60, 184, 46, 70, 0.34),
    (0.80, 244, 120, 28, 0.42),
    (1.00, 255, 226, 94, 0.64),
)


def to_bytes(image: Tensor) -> Tensor:
    """An image [channels, S, T], uint8 or floating point in [0, 1], as uint8 on the CPU."""
    if image.dim() != 3:
        raise ValueError(f"image must be [channels, S, T], got shape {tuple(image.shape)}")
    image = image.detach()
    if image.dtype == torch.uint8:
        return image.cpu()
    if not image.is_floating_point():
        raise TypeError(f"image must be uint8 or floating point in [0, 1], got {image.dtype}")
    return image.float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


def picture(image: Tensor, *, longest: int | None = None) -> Image.Image:
    """An image as a Pillow picture: colour for three channels, else their mean in grey.

    Args:
        image: [channels, S, T], uint8 or floating point in [0, 1].
        longest: Largest allowed side in pixels; larger pictures are reduced.
    """
    pixels = to_bytes(image)
    if pixels.shape[0] == 3:
        shown = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    else:
        grey = pixels[0] if pixels.shape[0] == 1 else pixels.float().mean(dim=0).to(torch.uint8)
        shown = Image.fromarray(grey.contiguous().numpy())
    if longest is not None and max(shown.size) > longest:
        scale = longest / max(shown.size)
        size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
        shown = shown.resize(size, Image.Resampling.LANCZOS)
    return shown


def jpeg(image: Tensor, *, longest: int | None = None) -> bytes:
    """The JPEG file of an image [channels, S, T]."""
    return _encoded(picture(image, longest=longest), "JPEG", quality=_JPEG_QUALITY, optimize=True)


def crop_png(image: Tensor, box: tuple[int, int, int, int]) -> bytes:
    """The PNG file of the part of an image [channels, S, T] inside ``box`` (x0, y0, x1, y1)."""
    return _encoded(picture(image).crop(box), "PNG", optimize=True)


def scaled(heatmap: Tensor, *, like: Tensor | None = None) -> Tensor:
    """A heat map [..., S, T] stretched to [0, 1], each map for itself; a flat one becomes 0.

    Args:
        heatmap: [..., S, T].
        like: Heat maps by whose range to stretch, to compare maps by their colours; what is below
            or above it becomes 0 or 1.
    """
    values = heatmap.detach().to(torch.float32)
    given = values if like is None else like.detach().to(torch.float32)
    low = given.amin(dim=(-2, -1), keepdim=True)
    span = given.amax(dim=(-2, -1), keepdim=True) - low
    return torch.where(span > 0, (values - low) / span, 0.0).nan_to_num_(0.0).clamp_(0, 1)


def heatmap_png(heatmap: Tensor, *, longest: int = 64) -> bytes:
    """The PNG file, transparent and with a palette, of a heat map stretched to its own range.

    An up-sampled latent map holds no detail that 64 pixels would lose, and browsers smooth when
    they enlarge.

    Args:
        heatmap: [S, T].
        longest: Largest allowed side in pixels.
    """
    values = scaled(heatmap).cpu()
    scale = longest / max(values.shape)
    if scale < 1:
        size = (max(1, round(values.shape[0] * scale)), max(1, round(values.shape[1] * scale)))
        values = F.interpolate(values[None, None], size=size, mode="area")[0, 0]
    levels = values.mul(_LEVELS - 1).round().to(torch.uint8).numpy()
    shown = Image.fromarray(levels).convert("P")
    shown.putpalette(palette()[:, :3].tobytes())
    return _encoded(shown, "PNG", transparency=palette()[:, 3].tobytes(), optimize=True)


def marked_png(
    image: Tensor,
    *,
    heatmap: Tensor | None = None,
    like: Tensor | None = None,
    box: tuple[int, int, int, int] | None = None,
    longest: int = 336,
) -> bytes:
    """The PNG file of an image with a heat map laid over it and a box drawn around a part of it.

    Args:
        image: [channels, S, T], uint8 or floating point in [0, 1].
        heatmap: [S, T], stretched to its own range.
        like: Another heat map to whose range it is stretched instead.
        box: x0, y0, x1, y1 in pixels of the image; x1 and y1 are one past the last.
        longest: Side in pixels that the longer side is enlarged or reduced to.
    """
    height, width = image.shape[-2:]
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = picture(image).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    if heatmap is not None:
        heat = Image.fromarray(coloured(heatmap, like=like)).resize(size, Image.Resampling.BILINEAR)
        shown.paste(heat, mask=heat)
    if box is not None:
        x0, y0, x1, y1 = (round(edge * scale) for edge in box)
        draw = ImageDraw.Draw(shown)
        for grown, color, line in ((0, "black", 5), (-1, FRAME, 3)):
            corners = (x0 - grown, y0 - grown, max(x0, x1 - 1) + grown, max(y0, y1 - 1) + grown)
            draw.rectangle(corners, outline=color, width=line)
    return _encoded(shown, "PNG")


def coloured(heatmap: Tensor, *, like: Tensor | None = None) -> Pixels:
    """A heat map [S, T], stretched as `scaled` does, as colours with opacity [S, T, 4]."""
    levels = scaled(heatmap, like=like).mul(_LEVELS - 1).round().to(torch.uint8).cpu().numpy()
    found: Pixels = palette()[levels]
    return found


@cache
def palette() -> Pixels:
    """The heat map's colours with opacity, [levels, 4], from low to high similarity."""
    anchors = np.asarray(_ANCHORS, dtype=np.float64)
    levels = np.linspace(0, 1, _LEVELS)
    channels = [np.interp(levels, anchors[:, 0], anchors[:, column]) for column in range(1, 5)]
    channels[3] = channels[3] * 255
    return np.stack(channels, axis=1).round().astype(np.uint8)


def _encoded(shown: Image.Image, file_type: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    shown.save(buffer, file_type, **options)
    return buffer.getvalue()
