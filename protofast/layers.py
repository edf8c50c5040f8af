"""`PrototypeLayer`: prototypes as a module: distance, similarity and max-pooling in one."""

import torch
from torch import Tensor, nn

from protofast.ops import NearestPatch, distance_map, mean_distance, nearest_patch, similarity_map
from protofast.similarities import check_similarity


class PrototypeLayer(nn.Module):
    """P prototypes of depth D, compared with every patch of a latent map.

    Args:
        num_prototypes: P.
        depth: D, the number of channels of the features.
        metric: `squared_l2` (ProtoPNet), `l2` (Hoffmann et al. 2021, Eq. 1), `dot` or `cosine`.
        similarity: `log`, `linear` or `exp`; `dot` and `cosine` allow `linear` alone.
        eps: stabiliser of the log similarity, in (0, 1).

    Attributes:
        prototypes: Parameter [P, D], drawn uniformly from [0, 1) as in ProtoPNet, whose features
            come out of a sigmoid.

    Raises:
        ValueError: a size below one, or a metric and similarity that do not go together.

    >>> layer = PrototypeLayer(20, 64)
    >>> activations, distances, locations = layer(torch.rand(2, 64, 7, 7))
    >>> activations.shape, locations.dtype
    (torch.Size([2, 20]), torch.int64)
    """

    def __init__(
        self,
        num_prototypes: int,
        depth: int,
        *,
        metric: str = "squared_l2",
        similarity: str = "log",
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        if num_prototypes < 1 or depth < 1:
            raise ValueError(
                f"num_prototypes and depth must be at least 1; got {num_prototypes} and {depth}"
            )
        check_similarity(metric, similarity, eps)
        self.metric, self.similarity, self.eps = metric, similarity, eps
        self.prototypes = nn.Parameter(torch.rand(num_prototypes, depth))

    @property
    def num_prototypes(self) -> int:
        """P."""
        return self.prototypes.shape[0]

    @property
    def depth(self) -> int:
        """D."""
        return self.prototypes.shape[1]

    def forward(self, features: Tensor) -> NearestPatch:
        """Nearest patch of each image to each prototype.

        Args:
            features: [N, D, H, W].

        Returns:
            NearestPatch(activations, distances, locations), each [N, P]; locations are int64 in
            [0, H*W), row-major.
        """
        return nearest_patch(
            features,
            self.prototypes,
            metric=self.metric,
            similarity=self.similarity,
            eps=self.eps,
        )

    def similarity_map(self, features: Tensor, index: Tensor | None = None) -> Tensor:
        """Similarity to every patch, [N, K, H, W], of the prototypes `index` [N, K] (None: all)."""
        return similarity_map(
            features,
            self.prototypes,
            index=index,
            metric=self.metric,
            similarity=self.similarity,
            eps=self.eps,
        )

    def distance_map(self, features: Tensor, index: Tensor | None = None) -> Tensor:
        """Distance to every patch, [N, K, H, W], of the prototypes `index` [N, K] (None: all)."""
        return distance_map(features, self.prototypes, index=index, metric=self.metric)

    def mean_distance(self, features: Tensor) -> Tensor:
        """Mean over all patches of the squared L2 distance, [N, P], whatever the layer's metric."""
        return mean_distance(features, self.prototypes)

    def extra_repr(self) -> str:
        """The arguments, for printing a model."""
        return (
            f"num_prototypes={self.num_prototypes}, depth={self.depth}, metric={self.metric!r}, "
            f"similarity={self.similarity!r}, eps={self.eps:g}"
        )
