"""A network of somebody else's, which keeps the model protocol and nothing more."""

from typing import Any

import torch
from torch import Tensor, nn

from protofast.models import Output, PrototypeModel


class ForeignModel(PrototypeModel):
    """Three classes share five prototypes, which belong to none; similarities of either sign.

    Args:
        patches: From normalised images to features.
        depth: Of the features.
        options: Of the model protocol: image size, channels, mean and standard deviation.
    """

    def __init__(self, patches: nn.Module, *, depth: int, **options: Any) -> None:
        super().__init__(num_classes=3, **options)
        self.patches = patches
        self.vectors = nn.Parameter(torch.randn(5, depth))
        self.weight = nn.Parameter(torch.randn(3, 5))

    @property
    def prototypes(self) -> nn.Parameter:
        return self.vectors

    def features(self, images: Tensor) -> Tensor:
        return self.patches(self.normalise(images))

    def similarity_map(self, features: Tensor, index: Tensor | None = None) -> Tensor:
        maps = torch.einsum("ndhw,pd->nphw", features, self.vectors)
        if index is None:
            return maps
        return maps.gather(1, index[:, :, None, None].expand(-1, -1, *maps.shape[2:]))

    def classify(self, features: Tensor) -> Output:
        activations, locations = self.similarity_map(features).flatten(2).max(dim=2)
        return Output(activations @ self.weight.T, activations, -activations, locations)

    def contributions(self, output: Output) -> Tensor:
        return output.activations[:, None] * self.weight
