"""When two prototypes are nearly the same vector: one rule, for warnings and for explanations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

RELATIVE = 1e-3
"""Length of their difference, relative to the prototypes' root mean square length."""

_ROWS_AT_ONCE = 256


def nearly_same(prototypes: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Which of the prototypes [P, D] are nearly the same vector, some rows at a time.

    Yields:
        The first row's number, and bool [n, P]: whether prototypes ``first``, ``first + 1``, ...
        are nearly the same as each of all (as itself, too).
    """
    vectors = prototypes.detach().to(torch.float32)
    near = RELATIVE * vectors.square().sum(dim=1).mean().sqrt()
    for first in range(0, len(vectors), _ROWS_AT_ONCE):
        distances = torch.cdist(
            vectors[first : first + _ROWS_AT_ONCE],
            vectors,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        yield first, distances <= near
