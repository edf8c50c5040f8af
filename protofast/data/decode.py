"""Reading one image file: JPEG by simplejpeg, everything else by Pillow.

Every file becomes ``uint8`` with one or three channels, the right way up:

- EXIF orientation is applied. CMYK becomes RGB, palettes are looked up, transparency is put onto
  white.
- 16-bit values of one channel (of three, Pillow keeps the upper 8 bits) are divided by 257;
  floating-point values must lie in [0, 1] and are multiplied by 255. Neither is stretched to its
  own range, so that brightness stays comparable between images.
- One channel is the luma of ITU-R 601 (a JPEG's own Y channel). Of an animation the first frame is
  taken.
- What a file holds decides, not what its name ends with.

JPEGs are decoded at full size. libjpeg can decode at 1/2, 1/4 or 1/8 of the size faster, but with
another filter than the resizing below, and by a factor that depends on the size of the file's
image, so similar photographs of different sizes would be blurred differently.
"""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protofast.errors import DataError, InstallError

try:
    import simplejpeg
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as missing:
    raise InstallError(
        f"reading images needs {missing.name}; install it with pip install 'protofast[all]'"
    ) from missing

Resize = Literal["stretch", "crop"]
Pixels = npt.NDArray[np.uint8]  # [S, T] or [S, T, 3]

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


_ZEROS = 16  # bytes that the data of a JPEG may well end with


def decode_image(path: str | Path, channels: int = 3) -> Tensor:
    """Reads an image file.

    Args:
        path: The file.
        channels: 1 (luma) or 3 (RGB).

    Returns:
        [channels, S, T] uint8.

    Raises:
        DataError: The file is missing, empty, truncated, damaged, not an image, or too large for
            the memory there is; the message names it.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    file = Path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file}: no such image file") from None
    except IsADirectoryError:
        raise DataError(f"{file}: is a folder; give an image file") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from None
    if not data:
        raise DataError(f"{file}: the file is empty (0 bytes); copy it again or remove it")
    try:
        pixels = _decode_jpeg(data, channels, file) if data[:3] == b"\xff\xd8\xff" else None
        if pixels is None:
            pixels = _decode_with_pillow(data, channels, file)
        return _to_tensor(pixels)
    except MemoryError:
        raise DataError(
            f"{file}: too little memory to decode it; make it smaller if it is very large, or free "
            "some memory"
        ) from None


def resize_image(image: Tensor, size: tuple[int, int], *, resize: Resize = "stretch") -> Tensor:
    """Resizes in 8 bits with Pillow's antialiased bilinear filter (a triangle).

    Args:
        image: [channels, S', T'] uint8.
        size: (S, T), height and width.
        resize: ``"stretch"`` does not keep the aspect ratio, as in the papers; ``"crop"`` keeps it
            and cuts off what sticks out, equally on both sides.

    Returns:
        [channels, S, T] uint8.
    """
    if resize not in ("stretch", "crop"):
        raise ValueError(f'resize must be "stretch" or "crop", got {resize!r}')
    if image.shape[1:] == tuple(size):
        return image
    height, width = int(image.shape[1]), int(image.shape[2])
    box = (0.0, 0.0, float(width), float(height))
    if resize == "crop":
        scale = min(height / size[0], width / size[1])
        cut_y, cut_x = (height - scale * size[0]) / 2, (width - scale * size[1]) / 2
        box = (cut_x, cut_y, width - cut_x, height - cut_y)
    array = image[0].numpy() if image.shape[0] == 1 else image.permute(1, 2, 0).numpy()
    resized = Image.fromarray(np.ascontiguousarray(array)).resize(
        (size[1], size[0]), Image.Resampling.BILINEAR, box=box
    )
    return _to_tensor(np.array(resized))


def load_image(path: str | Path, size: tuple[int, int], channels: int = 3) -> Tensor:
    """One loose image file as a model's input.

    Args:
        path: The file.
        size: (S, T) to resize to, without keeping the aspect ratio.
        channels: 1 or 3.

    Returns:
        [channels, S, T] float32 in [0, 1].

    Raises:
        DataError: As :func:`decode_image`.
    """
    return resize_image(decode_image(path, channels), size).to(torch.float32) / 255


def _to_tensor(pixels: Pixels) -> Tensor:
    if pixels.ndim == 2:
        return torch.from_numpy(pixels)[None]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _decode_jpeg(data: bytes, channels: int, file: Path) -> Pixels | None:
    """The pixels, or None for what needs Pillow: CMYK, or oddly put together."""
    wanted = "GRAY" if channels == 1 else "RGB"
    try:
        colorspace = simplejpeg.decode_jpeg_header(data)[2]
        wanted = "CMYK" if colorspace in ("CMYK", "YCCK") else wanted
        pixels: Pixels = simplejpeg.decode_jpeg(data, wanted)
    except ValueError as complaint:
        # Pillow does not pass on libjpeg's warnings and would give the rest in grey.
        if _is_damage(str(complaint), data):
            raise DataError(
                f"{file}: damaged or truncated ({complaint}); copy the file again or remove it"
            ) from None
        return None
    if wanted == "CMYK":
        return None
    return _upright(pixels[:, :, 0] if channels == 1 else pixels, _exif_orientation(data))


def _is_damage(complaint: str, data: bytes) -> bool:
    """Whether what libjpeg complains of spoils the picture; stray bytes between markers do not."""
    if complaint.startswith("Premature end"):
        return True
    if not complaint.startswith("Corrupt JPEG data"):
        return False
    stray = re.search(r"(\d+) extraneous bytes before marker 0xd9", complaint)
    if stray is None:
        return "extraneous bytes" not in complaint
    # Zeros before the end marker may be padding. Where libjpeg took some of them for pixels, they
    # stand in the place of data, as when a copy was interrupted.
    before_end = data[: data.rfind(b"\xff\xd9")]
    zeros = len(before_end) - len(before_end.rstrip(b"\0"))
    return zeros > int(stray[1]) + _ZEROS


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """The pixels as they should be seen; orientation as in EXIF, 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _exif_orientation(data: bytes) -> int:
    """The EXIF orientation (1 to 8) in a JPEG's header; 1 if there is none."""
    start = data.find(b"Exif\0\0", 0, 65536)
    if start < 0:
        return 1
    tiff = data[start + 6 : start + 6 + 65536]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        if order is None:
            return 1
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _decode_with_pillow(data: bytes, channels: int, file: Path) -> Pixels:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise DataError(
            f"{file}: not an image that can be read (it begins with {data[:8]!r}); "
            "remove it, or convert it to PNG or JPEG"
        ) from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{file}: far too large for an image ({error}); resize it first") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError) as error:
        raise DataError(
            f"{file}: damaged or truncated ({error}); copy the file again or remove it"
        ) from None
    return _to_channels(upright, channels, file)


def _to_channels(image: Image.Image, channels: int, file: Path) -> Pixels:
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_to_eight_bits(np.asarray(image), file))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image if image.mode == mode else image.convert("RGB").convert(mode))


def _to_eight_bits(values: npt.NDArray[Any], file: Path) -> Pixels:
    floating = values.dtype.kind == "f"
    top = 1 if floating else 65535
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > top:
        raise DataError(
            f"{file}: {'floating-point' if floating else 'whole-number'} values must lie between 0 "
            f"and {top}, got {values.min():g} to {values.max():g}; rescale the image first"
        )
    eight: Pixels = np.rint(values * (255 / top)).astype(np.uint8)
    return eight
