"""What the tests of projection and pruning share: a network whose features a test chooses."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from protofast.models import ProtoPNet


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    index: Tensor


def batches_of(images, labels, size, order=None):
    order = torch.arange(len(images)) if order is None else order
    return [Batch(images[rows], labels[rows], rows) for rows in order.split(size)]


def model_on_features(classes, per_class, depth, *, prototypes=None, **options):
    """A ProtoPNet whose images are its features, so that a test can choose them."""
    model = ProtoPNet(
        nn.Identity(),
        num_classes=classes,
        prototypes_per_class=per_class,
        depth=depth,
        num_channels=depth,
        mean=[0.0] * depth,
        std=[1.0] * depth,
        input_size=(4, 4),
        **options,
    )
    model.add_on = nn.Identity()
    if prototypes is not None:
        with torch.no_grad():
            model.prototypes.copy_(prototypes)
    return model
