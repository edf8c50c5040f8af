"""Going once through a set of images with a model as it is: what projection and pruning share."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, distributed, nn

from protofast.errors import DataError
from protofast.models.protocol import Output, PrototypeModel


class LabelledImages(Protocol):
    """What is asked of a batch; `protofast.data.Batch` is one.

    images: float [N, channels, S, T] in [0, 1]. labels: int64 [N]. index: int64 [N], the position of each
    image in its set.
    """

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def index(self) -> Tensor: ...


class Scanned(NamedTuple):
    """One batch on the model's device: features [N, D, H, W], what the head says, labels [N], index [N]."""

    features: Tensor
    output: Output
    labels: Tensor
    index: Tensor


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; each module's own mode is put back after.

    (One by one, because a training loop may keep some batch norms in eval mode in a model that trains.)
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

    `progress` is called with the number of images done so far, after each batch.
    """
    device = model.prototypes.device
    done = 0
    for batch in batches:
        features = model.features(batch.images.to(device, non_blocking=True))
        yield Scanned(
            features,
            model.classify(features),
            batch.labels.to(device, non_blocking=True),
            batch.index.to(device, non_blocking=True),
        )
        done += len(batch.images)
        if progress is not None:
            progress(done)


def gather_ranks(rows: Tensor) -> Tensor:
    """The tensors of all ranks, [world, ...]; [1, ...] where there is one process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows.unsqueeze(0)
    everyone = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyone, rows.contiguous())
    return torch.stack(everyone)


def raise_not_finite(index: int) -> None:
    """The error for image `index`, whose features or distances are not finite."""
    raise DataError(
        f"image {index} of the set gives features that are not finite; look at that image, and at the "
        "model's weights (a training that diverged)"
    )
