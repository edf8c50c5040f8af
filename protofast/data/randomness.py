"""Random numbers that belong to an image, not to a moment.

A number is a hash of (seed, purpose, key), so it does not matter in which order, batch, thread or
process the images are handled, nor where a run was resumed. The hash is the finaliser of SplitMix64
(Steele et al. 2014), which is a bijection on 64 bits with full avalanche; it is written out here
because generators of numpy promise their bits, not their distributions, for ever.

The purposes, none of which may change, for runs and audits go on with them: 1 order of batches,
2 augmentation, 4 rendered birds, 5 and 6 splits, 7 noise of attacks, 9 species, 10 compressed
classes, and the images of audits (never mixed up: the one orders classes, the others images), 11
compression as augmentation, 12 images of the JPEG audit, 20 and 21 masking, 22 and 23 alignment, 24
adversarial training, 25 targets of Head on Stomach. New ones begin at 26.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash_keys(*keys: int | npt.NDArray[np.int64]) -> Words:
    """A 64-bit hash of each tuple of keys; arrays are broadcast against each other."""
    state: Words = np.zeros(1, dtype=np.uint64)
    for key in keys:
        # Python integers wrap to 64 bits, so that any seed is allowed.
        words = np.atleast_1d(np.asarray(key & 0xFFFFFFFFFFFFFFFF if isinstance(key, int) else key))
        state = _mix((state + _GOLDEN) ^ _mix(words.astype(np.uint64) + _GOLDEN))
    return state


def uniform(count: int, *keys: int | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """``count`` numbers in [0, 1) for each tuple of keys: [n, count]."""
    state = hash_keys(*keys)[:, None]
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(state + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform_at(
    rows: npt.NDArray[np.int64], places: npt.NDArray[np.int64], *keys: int | npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """``uniform(count, *keys)[rows, places]`` for any large enough count, without the others."""
    steps = (places.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    words = _mix(hash_keys(*keys)[rows] + steps)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(length: int, *keys: int) -> npt.NDArray[np.int64]:
    """A random order of 0 … length-1 that depends on nothing but the keys."""
    words = hash_keys(*keys, np.arange(length, dtype=np.int64))
    return np.argsort(words[:length], kind="stable").astype(np.int64)
