"""Activation objects for ProtoPNeXt: called with features and prototypes, they give the map.

Where a model is built, `activation=protofast.interop.protopnext.L2Activation()` takes the place of
ProtoPNeXt's own object of that name. Distances are direct differences: the similarity at a
projected prototype's own patch is exactly log(1/epsilon_val), or 1.
"""

import torch
from torch import Tensor

from protofast.ops import distance_map, similarity_map

_STABILISER = 1e-14  # under the root, as in ProtoPNeXt and ProtoTree


class L2Activation:
    """log((d + 1) / (d + epsilon_val)) of the squared L2 distance d.

    >>> L2Activation()(torch.rand(2, 8, 7, 7), torch.rand(5, 8, 1, 1)).shape
    torch.Size([2, 5, 7, 7])
    """

    def __init__(self, epsilon_val: float = 1e-4) -> None:
        self.epsilon_val = epsilon_val

    def __call__(self, x: Tensor, prototype_tensors: Tensor) -> Tensor:
        """Features [N, D, H, W], prototypes [P, D, h, w] -> [N, P, H-h+1, W-w+1]."""
        return similarity_map(x, prototype_tensors, eps=self.epsilon_val)


class ExpL2Activation:
    """exp(-d) of the L2 distance d, as in ProtoTree; `epsilon_val` is kept and not used."""

    def __init__(self, epsilon_val: float = 1e-4) -> None:
        self.epsilon_val = epsilon_val

    def __call__(self, x: Tensor, prototype_tensors: Tensor) -> Tensor:
        """Features [N, D, H, W], prototypes [P, D, h, w] -> [N, P, H-h+1, W-w+1]."""
        return torch.exp(-torch.sqrt(distance_map(x, prototype_tensors) + _STABILISER))
