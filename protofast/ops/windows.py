"""Prototypes of several patches, [P, D, h, w], as the operators' implementations take them."""

from torch import Tensor
from torch.nn.functional import unfold

from protofast.ops.arguments import grid_of


def flatten_windows(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Turn h x w prototypes into single-patch ones where nothing reads windows in place.

    features [N, D, H, W] and prototypes [P, D, h, w], both checked, become for the CUDA kernels
    [N, D*h*w, H-h+1, W-w+1], all windows unfolded, and [P, D*h*w]. The CPU kernels and the
    reference take them as they are. Prototypes of 1 x 1 patches are [P, D] everywhere.
    """
    if prototypes.dim() == 2:
        return features, prototypes
    window = prototypes.shape[2:]
    if window == (1, 1):
        return features, prototypes.flatten(1)
    if features.device.type != "cuda":
        return features, prototypes
    windows = unfold(features, window)  # [N, D*h*w, L]
    return windows.unflatten(2, grid_of(features, prototypes)), prototypes.flatten(1)
