"""Prototypes packed once, for inference.

`nearest_patch` on the CPU brings the prototypes into the kernel's layout at every call.
`pack_prototypes` does it once; with the result `nearest_patch_packed` gives the same bits as
`nearest_patch`. Nothing is ever packed or kept unless the caller asks. A pack is compared, bit for
bit, with the prototypes at every use: one that is out of date is an error, however the prototypes
were changed.
"""

from typing import Any

import torch
from torch import Tensor

from protofast.ops import _library
from protofast.ops.arguments import (
    METRICS,
    PRECISIONS,
    REFINEMENTS,
    check_option,
    check_similarity,
    check_tensors,
    compute_dtype,
)
from protofast.ops.nearest_patch import NearestPatch

_STALE = (
    "the prototypes have changed since they were packed: pack them again "
    "(PrototypeLayer: freeze()), or use them unpacked (unfreeze())"
)
_MISFIT = (
    "these packed prototypes are not of these prototypes' sizes, dtype or metric, or were packed "
    "for another kind of processor: pack them again (PrototypeLayer: freeze())"
)


# A pack holds numbers of the kernel's type and others; its bits are kept, whatever they are.
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
_NUMBERS = {bits: numbers for numbers, bits in _BITS.items()}


def pack_prototypes(prototypes: Tensor, *, metric: str = "squared_l2") -> Tensor:
    """Pack prototypes for `nearest_patch_packed`.

    Args:
        prototypes: [P, D], of any floating dtype.
        metric: the metric that they will be compared by.

    Returns:
        An opaque one-dimensional tensor: for the CPU some twice as large as the prototypes, int64
        for float64 and else int32; on other devices empty, for there is nothing to gain there.

    Raises:
        TypeError: `prototypes` is no floating-point tensor.
        ValueError: it is not [P, D], or `metric` is unknown.
    """
    _check_prototypes(prototypes, metric)
    packed: Tensor = torch.ops.protofast.pack_prototypes(prototypes, metric)
    return packed


def nearest_patch_packed(
    features: Tensor,
    prototypes: Tensor,
    packed: Tensor,
    *,
    metric: str = "squared_l2",
    similarity: str = "log",
    eps: float = 1e-4,
    precision: str = "float32",
    refine: str = "auto",
) -> NearestPatch:
    """As `nearest_patch`, with prototypes that `pack_prototypes` has packed; the same bits.

    Not differentiable.

    Args:
        features: [N, D, H, W].
        prototypes: [P, D], bit for bit those that were packed.
        packed: from `pack_prototypes(prototypes, metric=metric)`.
        metric: as for `nearest_patch`; likewise the others.
        similarity: see there.
        eps: see there.
        precision: see there.
        refine: see there.

    Returns:
        NearestPatch(activations, distances, locations), each [N, P].

    Raises:
        TypeError: as for `nearest_patch`.
        ValueError: as for `nearest_patch`; or `packed` is of another size or dtype.
        RuntimeError: the prototypes have changed since, or `packed` was made for another metric or
            another kind of processor.
    """
    _check(features, prototypes, packed, metric, similarity, eps, precision, refine)
    return NearestPatch(
        *torch.ops.protofast.nearest_patch_packed(
            features, prototypes, packed, metric, similarity, eps, precision, refine
        )
    )


def _packed_size(prototypes: Tensor) -> int:
    """Length of the pack: as `pack_layout` of csrc/cpu/nearest_patch/prototype_pack.h has it."""
    if prototypes.device.type not in ("cpu", "meta"):
        return 0
    count, depth = prototypes.shape
    lanes = _round_up(count, 32)
    rows = _round_up(count * depth, 16)
    return rows + 16 + _round_up(depth, 16) + lanes + lanes * depth


def _round_up(value: int, multiple: int) -> int:
    return (value + multiple - 1) // multiple * multiple


def _check_prototypes(prototypes: Tensor, metric: str) -> None:
    check_option("metric", metric, METRICS)
    if not isinstance(prototypes, Tensor) or not prototypes.is_floating_point():
        got = prototypes.dtype if isinstance(prototypes, Tensor) else type(prototypes).__name__
        raise TypeError(f"prototypes must be a floating-point tensor; got {got}")
    if prototypes.dim() != 2 or prototypes.shape[1] == 0:
        raise ValueError(f"prototypes must be [P, D]; got {list(prototypes.shape)}")


def _check(
    features: Tensor,
    prototypes: Tensor,
    packed: Tensor,
    metric: str,
    similarity: str,
    eps: float,
    precision: str,
    refine: str,
) -> None:
    check_tensors(features, prototypes)
    _check_prototypes(prototypes, metric)
    check_similarity(metric, similarity, eps)
    check_option("precision", precision, PRECISIONS)
    check_option("refine", refine, REFINEMENTS)
    if packed.device != prototypes.device:
        raise ValueError(
            f"packed must be on the device of prototypes, {prototypes.device}; got {packed.device}"
        )
    if packed.dim() != 1 or packed.shape[0] != _packed_size(prototypes):
        raise ValueError(_MISFIT)
    numbers = compute_dtype(prototypes, prototypes)
    if packed.dtype != _BITS[numbers]:
        raise ValueError(_MISFIT)
    if numbers != compute_dtype(features, prototypes):
        raise ValueError(
            f"prototypes packed as {numbers} cannot be compared with features of "
            f"{features.dtype}: convert the features to {numbers}, or use the prototypes "
            "unpacked (PrototypeLayer: unfreeze())"
        )


def _reference_pack(prototypes: Tensor, metric: str) -> Tensor:
    """The prototypes themselves, to be compared later; the rest stays empty."""
    packed = _fake_pack(prototypes, metric).zero_()
    if len(packed) > 0:
        numbers = prototypes.to(_NUMBERS[packed.dtype]).flatten()
        packed[: prototypes.numel()] = numbers.view(packed.dtype)
    return packed


def _fake_pack(prototypes: Tensor, metric: str) -> Tensor:
    _check_prototypes(prototypes, metric)
    dtype = _BITS[compute_dtype(prototypes, prototypes)]
    return prototypes.new_empty(_packed_size(prototypes), dtype=dtype)


def _reference(
    features: Tensor,
    prototypes: Tensor,
    packed: Tensor,
    metric: str,
    similarity: str,
    eps: float,
    precision: str,
    refine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """By `nearest_patch`, which has nothing to gain from packing here."""
    _check(features, prototypes, packed, metric, similarity, eps, precision, refine)
    if len(packed) > 0:
        now = prototypes.to(_NUMBERS[packed.dtype]).flatten()
        if not torch.equal(packed[: prototypes.numel()], now.view(packed.dtype)):
            raise RuntimeError(_STALE)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.protofast.nearest_patch(
        features, prototypes, metric, similarity, eps, precision, refine
    )
    return found


def _fake(
    features: Tensor,
    prototypes: Tensor,
    packed: Tensor,
    metric: str,
    similarity: str,
    eps: float,
    precision: str,
    refine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(features, prototypes, packed, metric, similarity, eps, precision, refine)
    shape = (features.shape[0], prototypes.shape[0])
    activations = features.new_empty(shape, dtype=_NUMBERS[packed.dtype])
    locations = features.new_empty(shape, dtype=torch.int64)
    return activations, torch.empty_like(activations), locations


def _refuse_gradient(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "packed prototypes are for inference alone: nearest_patch_packed has no gradient; use "
        "nearest_patch (PrototypeLayer: unfreeze())"
    )


def _no_context(ctx: Any, inputs: Any, output: Any) -> None:
    pass


_library.declare(
    "pack_prototypes(Tensor prototypes, str metric) -> Tensor", _reference_pack, _fake_pack
)
_library.declare(
    "nearest_patch_packed(Tensor features, Tensor prototypes, Tensor packed, str metric, "
    "str similarity, float eps, str precision, str refine) -> "
    "(Tensor activations, Tensor distances, Tensor locations)",
    _reference,
    _fake,
)
_library.differentiate("nearest_patch_packed", _refuse_gradient, _no_context)
