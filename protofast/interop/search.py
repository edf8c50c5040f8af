"""Going through a push set with somebody else's network: what push and prune share.

Distances are float64, of the features as they are, so that the choice between two patches or images
is the one that the originals' rules make without rounding.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from protofast.errors import DataError
from protofast.interop.acceleration import plain_class
from protofast.interop.contract import Formulas, check_behaviour, formulas_of, unwrapped
from protofast.ops import distance_map


class PushBatch(NamedTuple):
    """One batch of the push set.

    images: as the loader gave them, [N, channels, S, T], un-normalised.
    features: [N, D, H, W], float64, on the network's device.
    labels: int64 [N], on the network's device.
    start: position in the set of the first image.
    """

    images: Tensor
    features: Tensor
    labels: Tensor
    start: int


class Searched(NamedTuple):
    """A network to be searched, with what it compares; prototypes are [P, D, h, w] float64."""

    network: Any
    formulas: Formulas
    prototypes: Tensor
    metric: str

    def maps(self, features: Tensor, index: Tensor) -> Tensor:
        """Distances to every patch of chosen prototypes: index [N, K] -> [N, K, H', W']."""
        return distance_map(features, self.prototypes, index=index, metric=self.metric)


def searched(model: nn.Module) -> Searched:
    """The network in `model`, accelerated or not, in eval mode.

    Raises:
        TypeError, ValueError: it is not laid out like PPNet or TESNet; see `accelerate`.
    """
    network: Any = unwrapped(model)
    formulas = formulas_of(network)
    plain = plain_class(network)
    if plain is type(network):  # an accelerated one has been looked at already
        check_behaviour(network, plain, formulas, ("push_forward",))
    model.eval()
    exact = _Prototypes(network.prototype_vectors.detach().double())
    prototypes, metric = formulas.compared(exact)
    return Searched(network, formulas, prototypes, metric)


class _Prototypes(NamedTuple):
    """Stands for a network where only its prototypes are looked at."""

    prototype_vectors: Tensor


@torch.no_grad()
def push_set(
    network: Any,
    dataloader: Iterable[Any],
    preprocess: Callable[[Tensor], Tensor] | None,
) -> Iterator[PushBatch]:
    """Batches (images, labels, ...) of a loader, with their features.

    Raises:
        ValueError: labels that are not classes.
        DataError: features that are not finite.
    """
    device, classes = network.prototype_vectors.device, network.num_classes
    start = 0
    for images, labels, *_ in dataloader:
        if len(images) == 0:
            continue
        labels = torch.as_tensor(labels, dtype=torch.int64)
        if labels.shape != images.shape[:1] or not bool(((labels >= 0) & (labels < classes)).all()):
            raise ValueError(
                f"the loader's labels must be classes 0...{classes - 1}, one for each of the "
                f"{len(images)} images; got {labels.tolist()}"
            )
        inputs = images if preprocess is None else preprocess(images)
        features = network.conv_features(inputs.to(device)).double()
        finite = features.flatten(1).isfinite().all(dim=1)
        if not bool(finite.all()):
            raise DataError(
                f"image {start + int(finite.long().argmin())} of the set gives features that are "
                "not finite; look at that image, and at the model's weights"
            )
        yield PushBatch(images, features, labels.to(device), start)
        start += len(images)


def patches_at(features: Tensor, rows: Tensor, locations: Tensor, window: torch.Size) -> Tensor:
    """The patches [R, D, h, w] of features [N, D, H, W] that begin at `locations` of images `rows`.

    Locations are row-major among the H-h+1 x W-w+1 places where a window fits.
    """
    height, width = window
    columns = features.shape[3] - width + 1
    device = features.device
    y = (locations // columns).view(-1, 1, 1) + torch.arange(height, device=device).view(1, -1, 1)
    x = (locations % columns).view(-1, 1, 1) + torch.arange(width, device=device).view(1, 1, -1)
    return features[rows.view(-1, 1, 1), :, y, x].permute(0, 3, 1, 2)  # from [R, h, w, D]
