"""`PrototypeLayer`: prototypes as a module: distance, similarity and max-pooling in one."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from protofast.ops import NearestPatch, distance_map, mean_distance, nearest_patch, similarity_map
from protofast.ops.packed_prototypes import nearest_patch_packed, pack_prototypes
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

    _packed: Tensor | None

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
        # Only while frozen; not persistent, so that the state dict never knows of it.
        self.register_buffer("_packed", None, persistent=False)

    @classmethod
    def from_ppnet(cls, model: nn.Module) -> Self:
        """A layer with the prototypes of an original PPNet (Chen et al. 2019, released code).

        Args:
            model: known by its attributes `prototype_vectors` [P, D, 1, 1],
                `prototype_activation_function` (`log` or `linear`) and `epsilon`; may be inside
                `nn.DataParallel` or `DistributedDataParallel`. Its prototypes are copied.

        Raises:
            TypeError: an attribute is missing; it is named.
            ValueError: prototypes of several patches, or an activation function of one's own.
        """
        inner = getattr(model, "module", None)
        network: Any = model if inner is None or hasattr(model, "prototype_vectors") else inner
        wanted = ("prototype_vectors", "prototype_activation_function", "epsilon")
        missing = [name for name in wanted if not hasattr(network, name)]
        if missing:
            raise TypeError(f"{type(network).__name__} is no PPNet: it has no {', '.join(missing)}")
        vectors, similarity = network.prototype_vectors, network.prototype_activation_function
        if hasattr(network, "_project2basis"):
            raise ValueError(
                "a TESNet compares by two metrics at once, which one layer cannot: use "
                "protofast.accelerate(model)"
            )
        if vectors.dim() != 4 or vectors.shape[2:] != (1, 1):
            raise ValueError(
                f"prototype_vectors must be [P, D, 1, 1]; got {list(vectors.shape)}: for several "
                "patches use protofast.accelerate(model)"
            )
        if similarity not in ("log", "linear"):
            raise ValueError(
                "prototype_activation_function must be 'log' or 'linear'; got "
                f"{similarity!r}: for a function use protofast.accelerate(model)"
            )
        eps = float(network.epsilon) if similarity == "log" else 1e-4
        layer = cls(*vectors.shape[:2], similarity=similarity, eps=eps)
        layer.prototypes = nn.Parameter(
            vectors.detach().flatten(1).clone(), requires_grad=vectors.requires_grad
        )
        return layer

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

        Raises:
            RuntimeError: the layer is frozen, and in training mode, or a gradient is wanted, or the
                prototypes have changed since.
        """
        if self._packed is None:
            return nearest_patch(
                features,
                self.prototypes,
                metric=self.metric,
                similarity=self.similarity,
                eps=self.eps,
            )
        self._refuse_training(features)
        return nearest_patch_packed(
            features,
            self.prototypes,
            self._packed,
            metric=self.metric,
            similarity=self.similarity,
            eps=self.eps,
        )

    @property
    def is_frozen(self) -> bool:
        """Whether the prototypes are packed for inference."""
        return self._packed is not None

    def freeze(self) -> Self:
        """Pack the prototypes once, for inference on a CPU, instead of at every call.

        Results stay the same to the bit; what it gains is little (docs/kernels.md). Until
        `unfreeze`, the layer computes in evaluation mode and without gradients only, and raises an
        error where the prototypes are not, bit for bit, those of now: after any change (loading a
        state dict, projection, pruning, another dtype, writing to `.data`) call `freeze` again. The
        state dict stays as it is. On other devices than the CPU there is nothing to gain.

        Returns:
            The layer itself.

        Raises:
            RuntimeError: the layer is in training mode.
        """
        if self.training:
            raise RuntimeError("freeze() is for inference: call eval() on the model first")
        self._packed = pack_prototypes(self.prototypes.detach(), metric=self.metric)
        return self

    def unfreeze(self) -> Self:
        """Forget the packed prototypes: the layer can be trained again. Returns the layer."""
        self._packed = None
        return self

    def _refuse_training(self, features: Tensor) -> None:
        if self.training:
            raise RuntimeError(
                "a frozen PrototypeLayer cannot be trained: call unfreeze() on it, or eval() on "
                "the model"
            )
        wants_gradient = features.requires_grad or self.prototypes.requires_grad
        if torch.is_grad_enabled() and wants_gradient:
            raise RuntimeError(
                "a frozen PrototypeLayer has no gradients: compute under torch.no_grad() or "
                "torch.inference_mode(), or call unfreeze() on it"
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
