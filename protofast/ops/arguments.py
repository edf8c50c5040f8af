"""Checks of the operators' arguments, shared by the typed functions and the fake kernels.

All but `check_range` look at shapes, dtypes and options only, never at values, and so work on fake
tensors.
"""

import torch
from torch import Tensor

METRICS = ("squared_l2", "l2", "dot", "cosine")
SIMILARITIES = ("log", "linear", "exp")
PRECISIONS = ("float32", "tf32", "half")
REFINEMENTS = ("auto", "always", "never")
MOST_PATCHES = 8  # that nearest_patches finds for a prototype in an image

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compute_dtype(features: Tensor, prototypes: Tensor) -> torch.dtype:
    """The dtype of computations and results: float64 if either input is, else float32."""
    both = (features.dtype, prototypes.dtype)
    return torch.float64 if torch.float64 in both else torch.float32


def check_option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def check_similarity(metric: str, similarity: str, eps: float) -> None:
    """Raise ValueError for an unknown or meaningless metric and similarity, or a bad `eps`."""
    check_option("metric", metric, METRICS)
    check_option("similarity", similarity, SIMILARITIES)
    if metric in ("dot", "cosine") and similarity != "linear":
        raise ValueError(
            f"metric {metric!r} has negative distances and allows similarity 'linear' only; "
            f"got {similarity!r}"
        )
    if not 0.0 < eps < 1.0:
        raise ValueError(f"eps must lie strictly between 0 and 1; got {eps}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` is a dense tensor of floating-point numbers."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATING:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64; got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense (torch.strided); got {tensor.layout}")


def grid_of(features: Tensor, prototypes: Tensor) -> tuple[int, int]:
    """Rows and columns of locations: H, W for prototypes [P, D], H-h+1, W-w+1 for [P, D, h, w]."""
    height, width = prototypes.shape[2:] or (1, 1)
    return features.shape[2] - height + 1, features.shape[3] - width + 1


def check_tensors(features: Tensor, prototypes: Tensor) -> None:
    """Raise TypeError or ValueError unless the tensors are what all operators take.

    Features [N, D, H, W] and prototypes [P, D] or [P, D, h, w].
    """
    check_floating("features", features)
    check_floating("prototypes", prototypes)
    # The messages are put together only to be raised: torch.compile cannot print symbolic sizes.
    if features.dim() != 4 or prototypes.dim() not in (2, 4):
        raise ValueError(
            "expected features [N, D, H, W] and prototypes [P, D] or [P, D, h, w]; got features "
            f"{_shape(features)} and prototypes {_shape(prototypes)}"
        )
    if features.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"features and prototypes must have the same depth D; got {features.shape[1]} and "
            f"{prototypes.shape[1]}: {_shapes(features, prototypes)}"
        )
    if features.shape[1] == 0 or features.shape[2] == 0 or features.shape[3] == 0:
        raise ValueError(
            "features need at least one channel and one location; got "
            + _shapes(features, prototypes)
        )
    if prototypes.dim() == 4:
        _check_window(features, prototypes)
    if features.device != prototypes.device:
        raise ValueError(
            f"features and prototypes must be on the same device; got {features.device} and "
            f"{prototypes.device}"
        )


def _check_window(features: Tensor, prototypes: Tensor) -> None:
    (height, width), (rows, columns) = prototypes.shape[2:], grid_of(features, prototypes)
    if height < 1 or width < 1 or rows < 1 or columns < 1:
        raise ValueError(
            f"prototypes of {height} x {width} patches do not fit a grid of {features.shape[2]} x "
            f"{features.shape[3]} locations"
        )


def check_count(features: Tensor, prototypes: Tensor, k: int) -> None:
    """Raise unless `k` patches can be asked for: an int in [1, 8] and no more than there are."""
    if not isinstance(k, int | torch.SymInt) or isinstance(k, bool):
        raise TypeError(f"k must be an int; got {type(k).__name__}")
    if not 1 <= k <= MOST_PATCHES:
        raise ValueError(f"k must lie between 1 and {MOST_PATCHES}; got {k}")
    rows, columns = grid_of(features, prototypes)
    if k > rows * columns:
        raise ValueError(f"k must not exceed the number of locations, {rows} x {columns}; got {k}")


def check_index(features: Tensor, index: Tensor | None) -> None:
    """Raise unless `index`, the prototypes chosen for each image, is None or int64 [N, K]."""
    if index is None:
        return
    if not isinstance(index, Tensor):
        raise TypeError(f"index must be a torch.Tensor or None; got {type(index).__name__}")
    if index.dtype != torch.int64:
        raise TypeError(f"index must be int64; got {index.dtype}")
    if index.dim() != 2 or index.shape[0] != features.shape[0]:
        raise ValueError(
            f"index must be [N, K] with N = {features.shape[0]} as in features "
            f"{_shape(features)}; got {_shape(index)}"
        )
    if index.device != features.device:
        raise ValueError(
            f"index must be on the device of features, {features.device}; got {index.device}"
        )


def check_pairs(name: str, tensor: Tensor | None, features: Tensor, prototypes: Tensor) -> None:
    """Raise ValueError unless `tensor`, if there is one, is [N, P]."""
    if tensor is None:
        return
    if (
        tensor.dim() != 2
        or tensor.shape[0] != features.shape[0]
        or tensor.shape[1] != prototypes.shape[0]
    ):
        raise ValueError(
            f"{name} must be [N, P]; got {_shape(tensor)} for {_shapes(features, prototypes)}"
        )


def check_range(name: str, values: Tensor, limit: int) -> None:
    """Raise IndexError unless all `values` lie in [0, limit).

    Does nothing on GPUs, where looking would stop the host until the device is done.
    """
    if values.device.type != "cpu" or values.numel() == 0:
        return
    least, largest = (int(value) for value in values.aminmax())
    if least < 0 or largest >= limit:
        wrong = least if least < 0 else largest
        raise IndexError(f"{name} must lie in [0, {limit}); got {wrong}")


def _shapes(features: Tensor, prototypes: Tensor) -> str:
    letters = "[P, D]" if prototypes.dim() == 2 else "[P, D, h, w]"
    return (
        f"features {_shape(features)} ([N, D, H, W]) and prototypes {_shape(prototypes)} "
        f"({letters})"
    )


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"
