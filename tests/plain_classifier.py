"""What the tests of attacks share: a classifier without prototypes, and images for it."""

import torch
from torch import nn


def small_classifier(*, dtype=torch.float32, seed=0, classes=4):
    """A convolutional classifier of images of any size."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        ).to(dtype)


def random_images(count, size=(7, 9), *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *size, generator=generator, dtype=dtype)
