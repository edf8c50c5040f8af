"""A set of images that are latent maps, and a model that takes them: projection without a backbone.

The set has the structure of CUB-200-2011: 200 classes of 30 images, in the order of the classes,
and 10 prototypes a class. All numbers are coarse (multiples of 1/16), so that every distance is
exact in float32 however it is computed, and equal distances, of which there are many, are equal.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from protofast import ProtoPNet

CLASSES, IMAGES_PER_CLASS, PROTOTYPES_PER_CLASS = 200, 30, 10
DEPTH, GRID, BATCH = 128, 7, 75


class Batch(NamedTuple):
    """What projection and pruning read; images are features [N, D, H, W]."""

    images: Tensor
    labels: Tensor
    index: Tensor


class GivenFeatures(ProtoPNet):
    """A ProtoPNet whose features are what it is given."""

    def features(self, images: Tensor) -> Tensor:
        return images


def make_model(device: str) -> GivenFeatures:
    """With random coarse prototypes [2000, 128]; the same every time."""
    model = GivenFeatures(
        nn.Identity(),
        num_classes=CLASSES,
        prototypes_per_class=PROTOTYPES_PER_CLASS,
        depth=DEPTH,
        num_channels=DEPTH,
        backbone_depth=DEPTH,
        mean=[0.0] * DEPTH,
        std=[1.0] * DEPTH,
        input_size=(GRID, GRID),
    )
    generator = torch.Generator().manual_seed(1)
    shape = model.prototypes.shape
    with torch.no_grad():
        model.prototypes.copy_(torch.randint(0, 9, shape, generator=generator) / 8)
        # Prototypes lie where their class lies, but every tenth where the next one does: pruning
        # removes these.
        strays = torch.arange(shape[0]) % 10 == 0
        classes = (model.prototype_class + strays) % CLASSES
        model.prototypes.add_(_class_means(shape[1])[classes]).div_(2)
    return model.to(device)


def make_batches(images: int) -> list[Batch]:
    """The first `images` of the 6,000, in batches of 75 on the CPU."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(images) // IMAGES_PER_CLASS
    index = torch.arange(images)
    batches = []
    for rows in index.split(BATCH):
        shape = (len(rows), DEPTH, GRID, GRID)
        drawn = torch.randint(0, 9, shape, generator=generator) / 8
        features = (drawn + _class_means(DEPTH)[labels[rows], :, None, None]) / 2
        batches.append(Batch(features, labels[rows], rows))
    return batches


def _class_means(depth: int) -> Tensor:
    """[C, D], multiples of 1/8."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 9, (CLASSES, depth), generator=generator) / 8
