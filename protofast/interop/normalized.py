"""`from_normalized`: somebody else's PPNet or TESNet as a model of ours."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from protofast.interop.acceleration import plain_class
from protofast.interop.contract import (
    PPNET,
    check_behaviour,
    formulas_of,
    prototype_classes,
    similarity_of,
    unwrapped,
)
from protofast.models import Output, PrototypeModel, ReceptiveField
from protofast.ops import (
    NearPairs,
    distance_map,
    nearest_patch,
    nearest_patch_within,
    similarity_map,
)
from protofast.ops.arguments import compute_dtype


class NormalizedModel(PrototypeModel):
    """Somebody else's network behind the model protocol; made by `from_normalized`.

    Attributes:
        network: theirs; weights are shared with it.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: tuple[int, int],
    ) -> None:
        formulas = formulas_of(network)
        vectors = cast(Tensor, network.prototype_vectors)
        if vectors.shape[2:] != (1, 1):
            raise ValueError(
                "prototypes of several patches cannot be shown as one location each; got "
                f"prototype_vectors {list(vectors.shape)}"
            )
        plain = plain_class(network)
        if plain is type(network):
            check_behaviour(network, plain, formulas, ("forward", "push_forward"))
        super().__init__(
            num_classes=cast(nn.Linear, network.last_layer).weight.shape[0],
            num_channels=len(mean),
            input_size=input_size,
            mean=mean,
            std=std,
        )
        self.network: Any = network
        self._formulas = formulas
        self.prototype_class = prototype_classes(network)
        self.to(vectors.device)

    @property
    def prototypes(self) -> nn.Parameter:
        """[P, D]: a view of the network's `prototype_vectors`, into which projection writes."""
        return cast(nn.Parameter, self.network.prototype_vectors.flatten(1))

    def features(self, images: Tensor) -> Tensor:
        """Latent maps [N, D, H, W] of images [N, channels, S, T] in [0, 1]."""
        features: Tensor = self.network.conv_features(self.normalise(images))
        return features

    def classify(self, features: Tensor) -> Output:
        """The head alone; TESNet's distances are negative projections here."""
        network = self.network
        if self._formulas is PPNET:
            found = self._formulas.nearest(network, features)
            activations, distances, locations = found
        else:
            vectors, metric = self._formulas.compared(network)
            activations, distances, locations = nearest_patch(
                features, vectors, metric=metric, similarity="linear"
            )
        return Output(network.last_layer(activations), activations, distances, locations)

    def nearest_patch_within(self, features: Tensor, limits: Tensor) -> NearPairs:
        """Of what `classify` finds, the pairs with a distance of at most `limits` (float64 [P])."""
        vectors, metric = self._formulas.compared(self.network)
        if vectors.dtype != compute_dtype(features, vectors):  # `classify` rounds to it
            return super().nearest_patch_within(features, limits)
        return nearest_patch_within(features, vectors, limits, metric=metric)

    def similarity_map(self, features: Tensor, index: Tensor | None = None) -> Tensor:
        """Similarity to every patch, [N, K, H, W], of the prototypes `index` [N, K] (None: all)."""
        vectors, metric = self._formulas.compared(self.network)
        name, eps = similarity_of(self.network) if self._formulas is PPNET else ("linear", 1e-4)
        if name is not None:
            return similarity_map(
                features, vectors, index=index, metric=metric, similarity=name, eps=eps
            )
        distances = distance_map(features, vectors, index=index, metric=metric)
        similarities: Tensor = self.network.distance_2_similarity(distances)
        return similarities

    def contributions(self, output: Output) -> Tensor:
        """Activation times last-layer weight, [N, C, P]."""
        weight: Tensor = self.network.last_layer.weight
        return output.activations.unsqueeze(1) * weight

    def receptive_field(self) -> ReceptiveField | None:
        """From the network's `proto_layer_rf_info`, which is for square images."""
        field = getattr(self.network, "proto_layer_rf_info", None)
        if field is None or len(field) != 4 or self.input_size[0] != self.input_size[1]:
            return None
        grid, jump, size, start = field
        return ReceptiveField((int(grid),) * 2, self.input_size, int(jump), int(size), float(start))

    @torch.no_grad()
    def prune(self, keep: Tensor) -> None:
        """Keep only the prototypes `keep` (int64 [K], distinct), in their order; in place."""
        if not callable(getattr(self.network, "prune_prototypes", None)):
            raise NotImplementedError(f"{type(self.network).__name__} has no prune_prototypes")
        kept = set(keep.tolist())
        self.network.prune_prototypes([j for j in range(self.num_prototypes) if j not in kept])
        self.prototype_class = prototype_classes(self.network).to(self.mean.device)


def from_normalized(
    model: nn.Module,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    *,
    input_size: tuple[int, int] | None = None,
) -> NormalizedModel:
    """Wrap somebody else's PPNet or TESNet, which wants normalised images, as a model of ours.

    What comes back takes images in [0, 1] and can be explained, projected and pruned like a
    `ProtoPNet`. It shares the network's weights and mode; its head runs on the fused operators.

    Args:
        model: the network, accelerated or not, bare or in a wrapper.
        mean: per channel; the original's are ImageNet's.
        std: likewise.
        input_size: height and width of the images it is meant for; None takes its `img_size`.

    Raises:
        TypeError, ValueError: it is not laid out like PPNet or TESNet, computes something else, or
            has prototypes of several patches.
    """
    network = unwrapped(model)
    if input_size is None:
        size = int(cast(int, getattr(network, "img_size", 224)))
        input_size = (size, size)
    wrapped = NormalizedModel(network, mean, std, input_size)
    return wrapped.train(network.training)
