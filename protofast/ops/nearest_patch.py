"""`nearest_patch`: distance, similarity and max-pooling of a prototype layer in one pass."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from protofast.ops import _library, reference
from protofast.ops.arguments import (
    PRECISIONS,
    REFINEMENTS,
    check_option,
    check_pairs,
    check_similarity,
    check_tensors,
    compute_dtype,
)
from protofast.ops.windows import flatten_windows


class NearestPatch(NamedTuple):
    """What `nearest_patch` returns; each [N, P]."""

    activations: Tensor
    distances: Tensor
    locations: Tensor


def nearest_patch(
    features: Tensor,
    prototypes: Tensor,
    *,
    metric: str = "squared_l2",
    similarity: str = "log",
    eps: float = 1e-4,
    precision: str = "float32",
    refine: str = "auto",
) -> NearestPatch:
    """Find, for every image and prototype, the nearest patch, its distance and its similarity.

    The map of all distances, [N, P, H, W], is never stored, neither forward nor backward. The
    winner's distance is a direct difference: a patch equal to the prototype has distance 0 and
    log-similarity log(1/eps), in every dtype.

    Args:
        features: latent maps [N, D, H, W], float16, bfloat16, float32 or float64; contiguous or
            channels-last memory is read in place.
        prototypes: [P, D], or [P, D, h, w] for prototypes of several patches (h, w no larger than
            H, W). May differ from `features` in dtype.
        metric: `squared_l2`, sum((z-p)^2) (ProtoPNet); `l2`, its root (Hoffmann et al. 2021, Eq. 1;
            ProtoTree); `dot`, -z.p; `cosine`, -cos(z, p), 0 for a zero vector.
        similarity: `log`, log((d+1)/(d+eps)) (Chen et al. 2019, section 2.1); `linear`, -d; `exp`,
            exp(-d). `dot` and `cosine` allow `linear` alone.
        eps: the stabiliser in the logarithm, in (0, 1).
        precision: how GPU kernels select the winner: `float32`, `tf32` or `half`. The CPU always
            computes in full precision, and PyTorch's TF32 switches are never followed.
        refine: when GPU kernels recompute the winner's distance directly: `auto` (where it can
            matter), `always` or `never`. The CPU always does.

    Returns:
        NearestPatch(activations, distances, locations), each [N, P]; float64 if an input is
        float64, else float32; locations are int64 in [0, H*W), row-major. The first location wins
        ties; a NaN in a patch gives NaN. An infinite number is infinitely far from a finite one
        (activation 0 with `log` and `exp`); infinite against infinite gives NaN.

    Raises:
        TypeError: an argument is no tensor, or not floating point.
        ValueError: shapes, devices or options do not fit; the message states both shapes.

    Example:
        >>> features = torch.tensor([[[[0.0, 3.0]]]])  # N=1, D=1, H=1, W=2
        >>> nearest_patch(features, torch.tensor([[2.0]])).locations
        tensor([[1]])
    """
    _check(features, prototypes, metric, similarity, eps, precision, refine)
    features, prototypes = flatten_windows(features, prototypes)
    return NearestPatch(
        *torch.ops.protofast.nearest_patch(
            features, prototypes, metric, similarity, eps, precision, refine
        )
    )


def _check(
    features: Tensor,
    prototypes: Tensor,
    metric: str,
    similarity: str,
    eps: float,
    precision: str,
    refine: str,
) -> None:
    check_tensors(features, prototypes)
    check_similarity(metric, similarity, eps)
    check_option("precision", precision, PRECISIONS)
    check_option("refine", refine, REFINEMENTS)


def _reference(
    features: Tensor,
    prototypes: Tensor,
    metric: str,
    similarity: str,
    eps: float,
    precision: str,
    refine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(features, prototypes, metric, similarity, eps, precision, refine)
    return reference.nearest_patch(features, prototypes, metric, similarity, eps)


def _fake(
    features: Tensor,
    prototypes: Tensor,
    metric: str,
    similarity: str,
    eps: float,
    precision: str,
    refine: str,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(features, prototypes, metric, similarity, eps, precision, refine)
    shape = (features.shape[0], prototypes.shape[0])
    dtype = compute_dtype(features, prototypes)
    activations = features.new_empty(shape, dtype=dtype)
    return activations, torch.empty_like(activations), features.new_empty(shape, dtype=torch.int64)


def _reference_backward(
    grad_activations: Tensor | None,
    grad_distances: Tensor | None,
    features: Tensor,
    prototypes: Tensor,
    distances: Tensor,
    locations: Tensor,
    metric: str,
    similarity: str,
    eps: float,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    for name, tensor in (
        ("grad_activations", grad_activations),
        ("grad_distances", grad_distances),
        ("distances", distances),
        ("locations", locations),
    ):
        check_pairs(name, tensor, features, prototypes)
    grad_features, grad_prototypes = reference.nearest_patch_backward(
        grad_activations,
        grad_distances,
        features,
        prototypes,
        distances,
        locations,
        metric,
        similarity,
        eps,
    )
    return (
        grad_features if need_features else features.new_empty(0),
        grad_prototypes if need_prototypes else prototypes.new_empty(0),
    )


def _fake_backward(
    grad_activations: Tensor | None,
    grad_distances: Tensor | None,
    features: Tensor,
    prototypes: Tensor,
    distances: Tensor,
    locations: Tensor,
    metric: str,
    similarity: str,
    eps: float,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(features) if need_features else features.new_empty(0),
        prototypes.new_empty(prototypes.shape) if need_prototypes else prototypes.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, prototypes, metric, similarity, eps, _, _ = inputs
    _, distances, locations = output
    ctx.save_for_backward(features, prototypes, distances, locations)
    ctx.options = (metric, similarity, eps)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_activations: Tensor | None, grad_distances: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    need_features, need_prototypes = ctx.needs_input_grad[:2]
    if grad_activations is None and grad_distances is None:
        return (None,) * 7
    grad_features, grad_prototypes = torch.ops.protofast.nearest_patch_backward(
        grad_activations,
        grad_distances,
        *ctx.saved_tensors,
        *ctx.options,
        need_features,
        need_prototypes,
    )
    return (
        grad_features if need_features else None,
        grad_prototypes if need_prototypes else None,
        *(None,) * 5,
    )


_library.declare(
    "nearest_patch(Tensor features, Tensor prototypes, str metric, str similarity, float eps, "
    "str precision, str refine) -> (Tensor activations, Tensor distances, Tensor locations)",
    _reference,
    _fake,
)
_library.declare(
    "nearest_patch_backward(Tensor? grad_activations, Tensor? grad_distances, Tensor features, "
    "Tensor prototypes, Tensor distances, Tensor locations, str metric, str similarity, float eps, "
    "bool need_features, bool need_prototypes) -> (Tensor grad_features, Tensor grad_prototypes)",
    _reference_backward,
    _fake_backward,
)
_library.differentiate("nearest_patch", _backward, _setup_context)
_library.refuse_second_derivative("nearest_patch_backward", "nearest_patch")
