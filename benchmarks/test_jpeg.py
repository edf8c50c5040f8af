"""A JPEG round trip of 64 images of 224x224 at quality 20, 4:2:0, from bytes NCHW to bytes NCHW.

The images are noise, about as rough as photographs of birds: compression costs them as much.
Baselines, each in as many threads as ours: `pillow`, as the released code does it, image by image
with plain conversions; `pillow ours`, Pillow's codec inside our own function, which converts
faster.
"""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from timing import measure, synchronised
from torch import Tensor

from protofast.data import round_trip

pytestmark = pytest.mark.benchmark(timer=synchronised)
COUNT, SIZE, QUALITY = 64, 224, 20
# The codecs use the same tables, but round differently when they write: on these images, by how
# much of a level on average, and by how much at most.
MEAN_DIFFERENCE, LARGEST_DIFFERENCE = 0.5, 32


def make_images() -> Tensor:
    """[COUNT, 3, SIZE, SIZE] uint8; channels that mostly go together, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(COUNT, 4, SIZE, SIZE, generator=generator)
    frequency = torch.fft.fftfreq(SIZE)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt().clamp(min=1 / SIZE)
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) / radius**1.4).real
    smooth = smooth / smooth.std(dim=(2, 3), keepdim=True)
    images = 128 + 45 * smooth[:, :1] + 8 * smooth[:, 1:]
    return images.clamp(0, 255).to(torch.uint8)


def ours(images: Tensor, threads: int) -> Tensor:
    return round_trip(images, quality=QUALITY, threads=threads)


def pillow_ours(images: Tensor, threads: int) -> Tensor:
    return round_trip(images, quality=QUALITY, codec="pillow", threads=threads)


def pillow(images: Tensor, threads: int) -> Tensor:
    with ThreadPoolExecutor(threads) as pool:
        return torch.stack(list(pool.map(_by_pillow, images)))


def _by_pillow(image: Tensor) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=QUALITY)
    with Image.open(buffer) as read:
        return torch.from_numpy(np.array(read)).permute(2, 0, 1)


WAYS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "ours": ours,
    "pillow": pillow,
    "pillow ours": pillow_ours,
}


@pytest.mark.parametrize("layer", WAYS)
def test_jpeg(benchmark: Any, layer: str, quick: bool) -> None:
    images, threads = make_images(), torch.get_num_threads()
    benchmark.group = "JPEG round trip"
    facts = {"device": "cpu", "layer": layer, "images": COUNT, "threads": threads}
    benchmark.extra_info.update(measured="jpeg", **facts)
    _check(images, WAYS[layer](images, threads), exact=layer != "ours")
    seconds = 0.5 if quick else 2.0
    measure(benchmark, lambda: WAYS[layer](images, threads), seconds=seconds)


def _check(images: Tensor, found: Tensor, *, exact: bool) -> None:
    """Pillow's pixels, or as near to them as the encoders' rounding lets ours be."""
    expected = torch.stack([_by_pillow(image) for image in images])
    if exact:
        assert torch.equal(found, expected)
        return
    for image in images[:8]:  # what is written is read alike to the last bit
        data = simplejpeg.encode_jpeg(
            np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
            quality=QUALITY,
            colorsubsampling="420",
        )
        with Image.open(io.BytesIO(data)) as read:
            assert np.array_equal(simplejpeg.decode_jpeg(data), np.asarray(read))
    difference = (found.int() - expected.int()).abs()
    assert difference.float().mean() < MEAN_DIFFERENCE
    assert difference.max() <= LARGEST_DIFFERENCE
    lost = (expected.int() - images.int()).abs().float().mean()
    assert difference.float().mean() < lost / 5
