"""Going once through a set of images with a model as it is: what projection and pruning share."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, distributed, nn

from protofast.errors import DataError
from protofast.models.protocol import Output, PrototypeModel

NO_IMAGE = torch.iinfo(torch.int64).max
"""Stands for "no image" among positions in a set, so that a minimum passes over it."""


class LabelledImages(Protocol):
    """What is asked of a batch; `protofast.data.Batch` is one."""

    @property
    def images(self) -> Tensor:
        """Float [N, channels, S, T] in [0, 1]."""

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""

    @property
    def index(self) -> Tensor:
        """int64 [N]: the position of each image in its set."""


@dataclass(frozen=True)
class Scanned:
    """One batch on the model's device.

    features: [N, D, H, W]. labels, index: int64 [N]. source: the batch as it was loaded.
    """

    model: PrototypeModel
    features: Tensor
    labels: Tensor
    index: Tensor
    source: LabelledImages

    @cached_property
    def output(self) -> Output:
        """What the model's head makes of the features."""
        return self.model.classify(self.features)

    def prototypes_of_its_classes(self, prototype_class: Tensor) -> Tensor:
        """The prototypes of the classes that the batch has images of, int64 [K], ascending.

        Images of one class mostly follow each other in a set, so these are a few of all.

        Args:
            prototype_class: int64 [P] where the labels are loaded (the CPU), so that a GPU is not
                waited for.
        """
        classes = self.source.labels.to(prototype_class.device).unique()
        here = (prototype_class.unsqueeze(1) == classes).any(dim=1)  # [P]
        chosen: Tensor = here.nonzero()[:, 0].to(self.features.device, non_blocking=True)
        return chosen


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; afterwards each module has its own mode back.

    (One by one, because a training may keep some batch norms in eval mode in a model that trains.)
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def scan(
    model: PrototypeModel,
    batches: Iterable[LabelledImages],
    progress: Callable[[int], None] | None = None,
) -> Iterator[Scanned]:
    """Run the model over the batches; to be used inside `evaluating`.

    `progress` is called after each batch with the number of images done so far.
    """
    device = model.prototypes.device
    done = 0
    for batch in batches:
        if len(batch.images) == 0:
            continue
        features = model.features(batch.images.to(device, non_blocking=True))
        yield Scanned(
            model,
            features,
            batch.labels.to(device, non_blocking=True),
            batch.index.to(device, non_blocking=True),
            batch,
        )
        done += len(batch.images)
        if progress is not None:
            progress(done)


def first_not_finite(batch: Scanned, distances: Tensor) -> Tensor:
    """Position [] of the first image with NaN or infinity in features or distances, or NO_IMAGE.

    It stays on the device, so that looking does not wait for it.

    Args:
        batch: one batch.
        distances: [N, K], to the prototypes that were looked at.
    """
    finite = torch.ones_like(batch.index, dtype=torch.bool)  # [N]
    for numbers, dims in ((batch.features, (1, 2, 3)), (distances, 1)):
        if numbers.numel() > 0:  # NaN is passed on by both, and this is far cheaper than isfinite
            finite &= numbers.amin(dim=dims).isfinite() & numbers.amax(dim=dims).isfinite()
    return torch.where(finite, NO_IMAGE, batch.index).amin()


def name_of_image(batches: object, index: int) -> str:
    """What to call an image: its position, and its file or name where the batches know them."""
    images = getattr(batches, "image_set", None)
    if images is None:
        return f"image {index} of the set"
    return f"image {index} of the set ({images.file(index) or images.names[index]})"


def raise_if_not_finite(image: Tensor, batches: object = None) -> None:
    """Raise DataError for what `first_not_finite` found in the batches, if it did."""
    index = int(image)
    if index != NO_IMAGE:
        raise DataError(
            f"{name_of_image(batches, index)} gives features or distances that are not finite; "
            "look at that image, and at the model's weights (a training that diverged)"
        )


def gather_ranks(tensor: Tensor) -> Tensor:
    """This tensor of all ranks, [world, ...]; [1, ...] where there is one process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor.unsqueeze(0)
    everyone = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyone, tensor.contiguous())
    return torch.stack(everyone)
