"""Prototypes of several patches, [P, D, h, w], reduced to prototypes of one patch."""

from torch import Tensor
from torch.nn.functional import unfold

from protofast.ops.arguments import check_floating


def unfold_windows(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Turn h x w prototypes into single-patch ones over the unfolded features.

    features [N, D, H, W] and prototypes [P, D, h, w] become [N, D*h*w, H-h+1, W-w+1] and
    [P, D*h*w]; other shapes are returned as they are, for the operators' own checks.

    Raises:
        TypeError: an argument is no dense floating-point tensor.
        ValueError: the windows do not fit the grid, or the depths differ or are 0.
    """
    check_floating("features", features)
    check_floating("prototypes", prototypes)
    if features.dim() != 4 or prototypes.dim() != 4:
        return features, prototypes
    height, width = prototypes.shape[2:]
    if (height, width) == (1, 1):
        return features, prototypes.flatten(1)
    rows, columns = features.shape[2] - height + 1, features.shape[3] - width + 1
    if height < 1 or width < 1 or rows < 1 or columns < 1:
        raise ValueError(
            f"prototypes of {height} x {width} patches do not fit a grid of {features.shape[2]} x "
            f"{features.shape[3]} locations"
        )
    if features.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"features and prototypes must have the same depth D; got {features.shape[1]} and "
            f"{prototypes.shape[1]}: features {list(features.shape)} ([N, D, H, W]) and prototypes "
            f"{list(prototypes.shape)} ([P, D, h, w])"
        )
    if features.shape[1] == 0:
        raise ValueError(
            f"features need at least one channel; got {list(features.shape)} ([N, D, H, W])"
        )
    windows = unfold(features, (height, width))  # [N, D*h*w, rows*columns]
    return windows.unflatten(2, (rows, columns)), prototypes.flatten(1)
