"""Activations computed once, for a last-layer stage on un-augmented images.

While only the last layer learns and batch norm is frozen, the activations of an un-augmented image
never change. So they are computed once per stage, [n, P], and an epoch of the last layer costs
milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from protofast.data import Batch, Batches
from protofast.models import ProtoPNet
from protofast.models.protocol import Output
from protofast.scan import evaluating


class Activations(NamedTuple):
    """What the prototypes say to every image of a set."""

    activations: Tensor  # [n, P]
    distances: Tensor  # [n, P]
    locations: Tensor  # [n, P] int64


class IndexBatch(NamedTuple):
    """A batch whose images need not be seen again."""

    labels: Tensor  # [N] int64
    index: Tensor  # type: ignore[assignment]  # [N] int64


def compute_activations(
    model: ProtoPNet, batches: Iterable[Batch], tick: Callable[[int], None]
) -> Activations:
    """Runs over a whole image set, in its order. Every rank does all of it.

    Args:
        model: The bare model; runs in eval mode and float32.
        batches: The images, in order.
        tick: Called with the number of images of each finished batch.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluating(model):
        for batch in batches:
            output = model(batch.images)
            found.append((output.activations, output.distances, output.locations))
            tick(len(batch.labels))
    return Activations(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def index_batches(batches: Batches, device: torch.device) -> Iterator[IndexBatch]:
    """The same batches without their images."""
    for index in batches.indices():
        yield IndexBatch(batches.image_set.labels[index].to(device), index.to(device))


def output_of(known: Activations, last_layer: Callable[[Tensor], Tensor], index: Tensor) -> Output:
    """What the model would give for the images at ``index`` [N], with today's last layer."""
    activations = known.activations[index]
    return Output(
        last_layer(activations), activations, known.distances[index], known.locations[index]
    )
