"""Similarity layers for CaBRNet, with CaBRNet's names, arguments and shapes.

Its configuration names a module and a class for the similarity layer; one line more brings these
in:

    similarity:
      module: protofast.interop.cabrnet
      name: ProtoPNetSimilarity

Distances are direct differences: 0 at a projected prototype's own patch, in every dtype, where
CaBRNet's expanded formula and `torch.cdist` leave a rounding error, and never negative. The map of
distances, which CaBRNet's interface hands on, is computed in one pass and is the only thing stored.
"""

from typing import Any

import torch
from torch import Tensor, nn

from protofast.ops import distance_map
from protofast.ops import similarity_map as log_similarity_map
from protofast.similarities import log_similarity


class SimilarityLayer(nn.Module):
    """Base of the layers: features [N, D, H, W] and prototypes [P, D, 1, 1] -> maps [N, P, H, W].

    CaBRNet passes `num_prototypes` and `num_features` to every layer; these need neither. The
    buffer `_summation_kernel` of its legacy layers is passed over in state dicts.
    """

    metric = "squared_l2"

    def __init__(self, num_prototypes: int = 0, num_features: int = 0) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_without_summation_kernel)

    def distances(self, features: Tensor, prototypes: Tensor, **_: Any) -> Tensor:
        """Distance of each prototype to each patch, [N, P, H, W]."""
        return distance_map(features, prototypes, metric=self.metric)

    def distances_to_similarities(self, distances: Tensor, **_: Any) -> Tensor:
        """Similarities of distances of any shape."""
        raise NotImplementedError

    def similarities(self, features: Tensor, prototypes: Tensor, **_: Any) -> Tensor:
        """Similarity of each prototype to each patch, [N, P, H, W]."""
        return self.distances_to_similarities(self.distances(features, prototypes))

    def forward(self, features: Tensor, prototypes: Tensor, **_: Any) -> Tensor:
        """As `similarities`."""
        return self.similarities(features, prototypes)


class ProtoPNetSimilarity(SimilarityLayer):
    """log((d + 1) / (d + stability_factor)) of the squared L2 distance d (ProtoPNet)."""

    def __init__(
        self, num_prototypes: int = 0, num_features: int = 0, stability_factor: float = 1e-4
    ) -> None:
        super().__init__(num_prototypes, num_features)
        self.stability_factor = stability_factor

    def distances_to_similarities(self, distances: Tensor, **_: Any) -> Tensor:
        """Similarities of distances of any shape; distances below 0 count as 0."""
        return log_similarity(distances.clamp(min=0), eps=self.stability_factor)

    def similarities(self, features: Tensor, prototypes: Tensor, **_: Any) -> Tensor:
        """Similarity of each prototype to each patch, [N, P, H, W]."""
        return log_similarity_map(features, prototypes, eps=self.stability_factor)


class ProtoTreeSimilarity(SimilarityLayer):
    """exp(-sqrt(d + stability_factor)) of the squared L2 distance d (ProtoTree), or its logarithm.

    Args:
        num_prototypes: see the base class; likewise `num_features`.
        num_features: see there.
        log_probabilities: return -sqrt(d + stability_factor).
        stability_factor: keeps the root's gradient finite.
    """

    def __init__(
        self,
        num_prototypes: int = 0,
        num_features: int = 0,
        log_probabilities: bool = False,
        stability_factor: float = 1e-14,
    ) -> None:
        super().__init__(num_prototypes, num_features)
        self.log_probabilities, self.stability_factor = log_probabilities, stability_factor

    def distances_to_similarities(self, distances: Tensor, **_: Any) -> Tensor:
        """Similarities of distances of any shape."""
        lengths = torch.sqrt(distances.abs() + self.stability_factor)
        return -lengths if self.log_probabilities else torch.exp(-lengths)


class CosineSimilarity(SimilarityLayer):
    """Cosine, as 1 - d with the distance d = 1 - cos; a zero vector has cosine 0 with everything.

    `stability_factor` is accepted for the configuration's sake; nothing here needs it.
    """

    metric = "cosine"

    def __init__(
        self, num_prototypes: int = 0, num_features: int = 0, stability_factor: float = 1e-8
    ) -> None:
        super().__init__(num_prototypes, num_features)

    def distances(self, features: Tensor, prototypes: Tensor, **_: Any) -> Tensor:
        """1 - cos of each prototype and each patch, [N, P, H, W]."""
        return 1 + super().distances(features, prototypes)

    def distances_to_similarities(self, distances: Tensor, **_: Any) -> Tensor:
        """1 - distances."""
        return 1 - distances


LegacyProtoPNetSimilarity = ProtoPNetSimilarity
LegacyProtoTreeSimilarity = ProtoTreeSimilarity


def _without_summation_kernel(
    _module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    state_dict.pop(f"{prefix}_summation_kernel", None)
