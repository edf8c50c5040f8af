"""What the typed functions and the fake kernels refuse, and how they say it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from protofast.ops import distance_map, mean_distance, nearest_patch, similarity_map


def features(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape or (2, 3, 4, 5), dtype=dtype)


def prototypes(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape or (6, 3), dtype=dtype)


# Wrong tensors: which error, its message, features, prototypes.
WRONG_TENSORS: list[tuple[type[Exception], str, Callable[[], tuple[Any, Any]]]] = [
    (
        ValueError,
        r"same depth D; got 3 and 4.*features \[2, 3, 4, 5\].*prototypes \[6, 4\]",
        lambda: (features(), prototypes(6, 4)),
    ),
    (
        ValueError,
        r"expected features \[N, D, H, W\].*features \[3, 4, 5\].*prototypes \[6, 3\]",
        lambda: (features(3, 4, 5), prototypes()),
    ),
    (
        ValueError,
        r"or \[P, D, h, w\]; got features \[2, 3, 4, 5\].*prototypes \[3\]",
        lambda: (features(), prototypes(3)),
    ),
    (
        ValueError,
        r"at least one channel and one location; got features \[2, 3, 0, 5\]",
        lambda: (features(2, 3, 0, 5), prototypes()),
    ),
    (
        ValueError,
        r"at least one channel and one location; got features \[2, 0, 4, 5\]",
        lambda: (features(2, 0, 4, 5), prototypes(6, 0)),
    ),
    (
        TypeError,
        "features must be float16, bfloat16, float32 or float64; got torch.int64",
        lambda: (features(dtype=torch.int64), prototypes()),
    ),
    (
        TypeError,
        "prototypes must be float16, .* got torch.complex64",
        lambda: (features(), prototypes(dtype=torch.complex64)),
    ),
    (
        ValueError,
        "same device; got cpu and meta",
        lambda: (features(), prototypes().to("meta")),
    ),
]
NO_TENSORS: list[tuple[type[Exception], str, Callable[[], tuple[Any, Any]]]] = [
    (
        TypeError,
        "features must be a torch.Tensor; got list",
        lambda: ([[1.0]], prototypes()),
    ),
    (
        TypeError,
        "prototypes must be a torch.Tensor; got NoneType",
        lambda: (features(), None),
    ),
    (
        TypeError,
        "features must be dense .* got torch.sparse_coo",
        lambda: (features().to_sparse(), prototypes()),
    ),
]
# Wrong options of nearest_patch.
WRONG_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("metric must be one of squared_l2, l2, dot, cosine; got 'euclid'", {"metric": "euclid"}),
    ("similarity must be one of log, linear, exp; got 'cos'", {"similarity": "cos"}),
    ("metric 'dot' .* allows similarity 'linear' only; got 'log'", {"metric": "dot"}),
    (
        "metric 'cosine' .* allows similarity 'linear' only; got 'exp'",
        {"metric": "cosine", "similarity": "exp"},
    ),
    ("eps must lie strictly between 0 and 1; got 0.0", {"eps": 0.0}),
    ("eps must lie strictly between 0 and 1; got -1.0", {"eps": -1.0}),
    ("eps must lie strictly between 0 and 1; got nan", {"eps": float("nan")}),
    ("precision must be one of float32, tf32, half; got 'fp8'", {"precision": "fp8"}),
    ("refine must be one of auto, always, never; got 'yes'", {"refine": "yes"}),
]


@pytest.mark.parametrize("function", [nearest_patch, distance_map, similarity_map, mean_distance])
@pytest.mark.parametrize(("error", "message", "arguments"), WRONG_TENSORS + NO_TENSORS)
def test_wrong_tensors(
    function: Callable[..., Any],
    error: type[Exception],
    message: str,
    arguments: Callable[[], tuple[Any, Any]],
) -> None:
    with pytest.raises(error, match=message):
        function(*arguments())


@pytest.mark.parametrize(("message", "options"), WRONG_OPTIONS)
def test_wrong_options(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_patch(features(), prototypes(), **options)


@pytest.mark.parametrize("name", ["metric", "similarity", "eps"])
def test_wrong_options_of_the_similarity_map(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        similarity_map(features(), prototypes(), **{name: 2.0 if name == "eps" else "other"})


def test_options_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        nearest_patch(features(), prototypes(), "l2")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("error", "message", "index"),
    [
        (TypeError, "index must be int64; got torch.int32", torch.zeros(2, 1, dtype=torch.int32)),
        (TypeError, "index must be a torch.Tensor or None; got list", [[0], [1]]),
        (ValueError, r"index must be \[N, K\] with N = 2.*got \[3, 1\]", torch.zeros(3, 1).long()),
        (ValueError, r"index must be \[N, K\] with N = 2.*got \[2\]", torch.zeros(2).long()),
        (
            ValueError,
            "index must be on the device of features, cpu; got meta",
            torch.zeros(2, 1, dtype=torch.int64, device="meta"),
        ),
    ],
)
def test_wrong_index(error: type[Exception], message: str, index: Any) -> None:
    with pytest.raises(error, match=message):
        distance_map(features(), prototypes(), index=index)


@pytest.mark.parametrize(("error", "message", "arguments"), WRONG_TENSORS)
def test_fake_kernels_refuse_the_same_tensors(
    error: type[Exception], message: str, arguments: Callable[[], tuple[Any, Any]]
) -> None:
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor) for tensor in arguments()]
        with pytest.raises(error, match=message):
            torch.ops.protofast.nearest_patch(*fake, "l2", "log", 1e-4, "float32", "auto")
        with pytest.raises(error, match=message):
            torch.ops.protofast.distance_map(*fake, None, "l2")


@pytest.mark.parametrize(("message", "options"), WRONG_OPTIONS)
def test_fake_kernels_refuse_the_same_options(message: str, options: dict[str, Any]) -> None:
    given = {
        "metric": "squared_l2",
        "similarity": "log",
        "eps": 1e-4,
        "precision": "float32",
        "refine": "auto",
        **options,
    }
    with FakeTensorMode(), pytest.raises(ValueError, match=message):
        torch.ops.protofast.nearest_patch(features(), prototypes(), **given)


@pytest.mark.parametrize("arguments", [case[2] for case in WRONG_TENSORS])
def test_the_operators_themselves_refuse_what_would_touch_foreign_memory(
    arguments: Callable[[], tuple[Any, Any]],
) -> None:
    """Whoever goes round the checks in Python gets an error, not a crash."""
    wrong = arguments()
    options = ("squared_l2", "log", 1e-4)
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        torch.ops.protofast.nearest_patch(*wrong, *options, "float32", "auto")
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        torch.ops.protofast.distance_map(*wrong, None, "squared_l2")


def test_backward_refuses_pairs_of_another_shape() -> None:
    found = nearest_patch(features(), prototypes())
    for name in range(4):
        pairs: list[Tensor] = [found.activations, found.distances, found.distances, found.locations]
        pairs[name] = pairs[name][:1]
        with pytest.raises((RuntimeError, ValueError), match=r"must be .*\[N, P\]"):
            torch.ops.protofast.nearest_patch_backward(
                *pairs[:2], features(), prototypes(), *pairs[2:], "l2", "log", 1e-4, True, True
            )
