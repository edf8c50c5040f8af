"""Similarity of a prototype to a patch, as a function of their distance.

The formulas themselves stand in `protofast.ops.reference`, beside the operators that use them; here
they have names of their own, for code that holds distances and wants similarities.
"""

from torch import Tensor

from protofast.ops.arguments import METRICS, SIMILARITIES, check_similarity
from protofast.ops.reference import similarity as _similarity

__all__ = [
    "ALLOWED_PAIRS",
    "METRICS",
    "SIMILARITIES",
    "check_similarity",
    "exp_similarity",
    "linear_similarity",
    "log_similarity",
    "similarity",
]

ALLOWED_PAIRS: tuple[tuple[str, str], ...] = tuple(
    (metric, name)
    for metric in METRICS
    for name in SIMILARITIES
    if name == "linear" or metric not in ("dot", "cosine")
)
"""Every (metric, similarity) that operators and layers accept."""


def similarity(distances: Tensor, name: str = "log", *, eps: float = 1e-4) -> Tensor:
    """Similarity called `name` (`log`, `linear` or `exp`) of distances of any shape.

    Raises:
        ValueError: unknown name, or `eps` outside (0, 1).
    """
    check_similarity("squared_l2", name, eps)
    return _similarity(distances, name, eps)


def log_similarity(distances: Tensor, *, eps: float = 1e-4) -> Tensor:
    """log((d + 1) / (d + eps)): log(1/eps) at 0, towards 0 far away (Chen et al. 2019, 2.1)."""
    return similarity(distances, "log", eps=eps)


def linear_similarity(distances: Tensor) -> Tensor:
    """-d."""
    return similarity(distances, "linear")


def exp_similarity(distances: Tensor) -> Tensor:
    """exp(-d), in (0, 1] (ProtoTree: Nauta et al. 2021, section 3)."""
    return similarity(distances, "exp")
