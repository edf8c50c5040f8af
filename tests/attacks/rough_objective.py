"""An objective that is hard on attacks."""

import torch


def rough(images, index):
    """An objective of each pixel alone, with gradients of all signs and sizes, a few of them NaN.

    It computes with sums and products of pixels, and adds up integers, so that an image has the
    same bits in every batch.
    """
    fixed = images.detach()
    broken = (fixed * 1000 % 1) < 0.05
    zeros = torch.where(broken, images - fixed, 1.0).sqrt() * broken  # gradient 0 * inf
    waves = torch.where(fixed > 0.7, 1e6, torch.where(fixed > 0.4, 1.0, 1e-6))
    for root in range(9):
        waves = waves * (4 * images - root / 2)
    differentiable = (waves + 0.0 * zeros).sum(dim=(1, 2, 3))
    exact = (waves.detach().double() * 1e3).round().sum(dim=(1, 2, 3)) / 1e3
    return exact + (differentiable - differentiable.detach())
