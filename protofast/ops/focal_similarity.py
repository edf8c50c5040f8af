"""`focal_similarity`: how much nearer the nearest patch is than the patches are on average."""

import torch
from torch import Tensor

from protofast.ops import reference
from protofast.ops.arguments import check_floating
from protofast.ops.distance_map import mean_distance
from protofast.ops.nearest_patch import nearest_patch


def focal_similarity(
    features: Tensor,
    prototypes: Tensor,
    *,
    presence: Tensor | None = None,
    similarity: str = "log",
    eps: float = 1e-4,
) -> Tensor:
    """Similarity of the least distance minus similarity of the mean distance (ProtoPool).

    Rymarczyk et al. 2022, section 3. The distances are squared L2; their map is not stored.
    ProtoPool's classes have slots, each a mixture of prototypes: with `presence` the least and the
    mean distances are mixed before the similarity is taken of each, as in its code.

    Args:
        features: [N, D, H, W], as for `nearest_patch`.
        prototypes: [P, D] or [P, D, h, w].
        presence: how much of each prototype is in slot k of class c, [C, P, K]; None does not mix.
        similarity: `log`, `linear` or `exp`, as for `nearest_patch`.
        eps: as for `nearest_patch`.

    Returns:
        [N, P], or [N, C, K] with `presence`; float64 if features or prototypes are, else float32.
        0 where all patches of an image are equal.

    Raises:
        TypeError: an argument is no tensor, or not floating point.
        ValueError: shapes, devices or options do not fit.

    Example:
        >>> features = torch.tensor([[[[0.0, 1.0]]]])  # distances 0 and 1 from the prototype
        >>> focal_similarity(features, torch.tensor([[0.0]]), similarity="linear")
        tensor([[0.5000]])
    """
    found = nearest_patch(features, prototypes, similarity=similarity, eps=eps)
    means = mean_distance(features, prototypes)
    if presence is None:
        return found.activations - reference.similarity(means, similarity, eps)
    _check_presence(features, prototypes, presence)
    with torch.autocast(features.device.type, enabled=False):  # the logarithm needs small distances
        least = _mixed(found.distances, presence)
        return reference.similarity(least, similarity, eps) - reference.similarity(
            _mixed(means, presence), similarity, eps
        )


def _mixed(distances: Tensor, presence: Tensor) -> Tensor:
    """[N, P] and [C, P, K] -> [N, C, K]."""
    return torch.einsum("np,cpk->nck", distances, presence.to(distances.dtype))


def _check_presence(features: Tensor, prototypes: Tensor, presence: Tensor) -> None:
    check_floating("presence", presence)
    if presence.dim() != 3 or presence.shape[1] != prototypes.shape[0]:
        raise ValueError(
            f"presence must be [C, P, K] with P = {prototypes.shape[0]} prototypes; got "
            f"{list(presence.shape)}"
        )
    if presence.device != features.device:
        raise ValueError(
            f"presence must be on the device of features, {features.device}; got {presence.device}"
        )
