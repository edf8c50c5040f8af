"""Noise that belongs to an image, not to its place in a batch.

A number is a hash of (seed, image, restart, place in the image), computed in integers on the
device, so it is the same to the last bit in every batch, on every device and for any number of
threads. The hash is the one of `protofast.data.randomness`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from protofast.data.randomness import hash_keys

_NOISE = 7  # purpose of these random numbers; see data/randomness.py
_BITS = 24  # of a number: all of them fit into float32
# The constants of SplitMix64 as signed numbers, for torch has no unsigned arithmetic; sums and
# products wrap all the same.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_SHIFTS = (30, 27)


def uniform_noise(
    shape: Sequence[int],
    image_ids: Tensor,
    *,
    seed: int,
    restart: int = 0,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform noise in [low, high] for each image: [n, *shape].

    Args:
        shape: Of the noise of one image, say (channels, S, T).
        image_ids: What keys each image's noise (its position in its set, say): int64 [n].
        seed: Key.
        restart: Key.
        low: A number, or a tensor that broadcasts to [n, *shape].
        high: Likewise.
        dtype: Of the noise. The numbers are multiples of 2^-24 of the way from low to high, the
            same in every dtype but for its rounding.
        device: Where the noise shall be; None: where `image_ids` are.

    Raises:
        TypeError: `image_ids` are not int64.
    """
    device = image_ids.device if device is None else torch.device(device)
    share = uniform_integers(shape, image_ids, seed=seed, restart=restart, device=device)
    noise = share.to(dtype).mul_(2.0**-_BITS)
    low, high = (torch.as_tensor(end, dtype=dtype, device=device) for end in (low, high))
    return noise.mul_(high - low).add_(low).clamp_(low, high)


def uniform_integers(
    shape: Sequence[int],
    image_ids: Tensor,
    *,
    seed: int,
    restart: int,
    device: torch.device,
) -> Tensor:
    """Uniform integers 0 ... 2^24 - 1 for each image: int64 [n, *shape]."""
    if image_ids.dtype != torch.int64 or image_ids.dim() != 1:
        raise TypeError(
            f"image_ids must be int64 [n]; got {image_ids.dtype} {list(image_ids.shape)}"
        )
    keys = hash_keys(_NOISE, seed, restart, image_ids.cpu().numpy())[: len(image_ids)]
    state = torch.from_numpy(keys.view(np.int64)).to(device)  # [n]
    places = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=device)
    words = state[:, None] + places.mul_(_GOLDEN)  # [n, numbers of one image]
    shifted = torch.empty_like(words)
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=True):
        words.bitwise_xor_(_shift(words, shift, out=shifted)).mul_(factor)
    # The top bits, whose last mixing (word ^ word >> 31) leaves the first 31 as they are.
    return _shift(words, 64 - _BITS, out=words).view(-1, *shape)


def _shift(words: Tensor, places: int, *, out: Tensor) -> Tensor:
    """Words shifted to the right, with zeros coming in from the left."""
    torch.bitwise_right_shift(words, places, out=out)
    return out.bitwise_and_((1 << (64 - places)) - 1)
