"""`dot_and_cosine`: the largest projection and the largest cosine of every prototype, together."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from protofast.ops import _library
from protofast.ops.arguments import check_tensors, compute_dtype
from protofast.ops.windows import flatten_windows


class DotAndCosine(NamedTuple):
    """What `dot_and_cosine` returns; each [N, P]."""

    dots: Tensor
    dot_locations: Tensor
    cosines: Tensor
    cosine_locations: Tensor


def dot_and_cosine(features: Tensor, prototypes: Tensor) -> DotAndCosine:
    """Find, for every image and prototype, the largest z.p and the largest cos(z, p) of any patch.

    What TesNet (Wang et al. 2021, section 3) needs: projections for the logits, cosines for the
    losses. On the CPU both come from one matrix product. The values are what `nearest_patch` finds
    with the metrics `dot` and `cosine`, with the sign reversed; the map is not stored.

    Args:
        features: [N, D, H, W], as for `nearest_patch`.
        prototypes: [P, D] or [P, D, h, w]. Not normalised here: for TesNet's projections, pass
            prototypes of length 1.

    Returns:
        DotAndCosine(dots, dot_locations, cosines, cosine_locations), each [N, P], with dtypes,
        locations, ties and NaN as those of `nearest_patch`.

    Raises:
        TypeError, ValueError: as `nearest_patch`.

    Example:
        >>> features = torch.tensor([[[[3.0, 1.0]], [[3.0, 0.0]]]])  # patches (3, 3) and (1, 0)
        >>> found = dot_and_cosine(features, torch.tensor([[1.0, 0.0]]))
        >>> found.dots, found.cosines
        (tensor([[3.]]), tensor([[1.]]))
    """
    check_tensors(features, prototypes)
    features, prototypes = flatten_windows(features, prototypes)
    return DotAndCosine(*torch.ops.protofast.dot_and_cosine(features, prototypes))


def _by_two_searches(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where no kernel does both at once: `nearest_patch`, by whatever kernel it has, twice."""
    check_tensors(features, prototypes)
    options = ("linear", 1e-4, "float32", "always")
    search = torch.ops.protofast.nearest_patch
    dots, _, dot_locations = search(features, prototypes, "dot", *options)
    cosines, _, cosine_locations = search(features, prototypes, "cosine", *options)
    return dots, dot_locations, cosines, cosine_locations


def _fake(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_tensors(features, prototypes)
    shape = (features.shape[0], prototypes.shape[0])
    dots = features.new_empty(shape, dtype=compute_dtype(features, prototypes))
    locations = features.new_empty(shape, dtype=torch.int64)
    return dots, locations, torch.empty_like(dots), torch.empty_like(locations)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_dots: Tensor | None, _: None, grad_cosines: Tensor | None, __: None
) -> tuple[Tensor | None, Tensor | None]:
    """The sum of the two metrics' gradients, rounded once to the dtypes of the inputs."""
    features, prototypes, dots, dot_locations, cosines, cosine_locations = ctx.saved_tensors
    wide = features.to(dots.dtype), prototypes.to(dots.dtype)
    sums: list[Tensor | None] = [None, None]
    for metric, grad, values, locations in (
        ("dot", grad_dots, dots, dot_locations),
        ("cosine", grad_cosines, cosines, cosine_locations),
    ):
        if grad is None:
            continue
        parts = torch.ops.protofast.nearest_patch_backward(
            grad, None, *wide, -values, locations, metric, "linear", 1e-4, *ctx.needs_input_grad
        )
        for i, part in enumerate(parts):
            if ctx.needs_input_grad[i]:
                before = sums[i]
                sums[i] = part if before is None else before + part
    grad_features, grad_prototypes = sums
    return (
        None if grad_features is None else grad_features.to(features.dtype),
        None if grad_prototypes is None else grad_prototypes.to(prototypes.dtype),
    )


_library.declare(
    "dot_and_cosine(Tensor features, Tensor prototypes) -> (Tensor dots, Tensor dot_locations, "
    "Tensor cosines, Tensor cosine_locations)",
    _by_two_searches,
    _fake,
)
_library.differentiate("dot_and_cosine", _backward, _setup_context)
