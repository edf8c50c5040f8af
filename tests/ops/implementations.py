"""The operators as the tests call them, once for each way of computing them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from protofast.ops import DotAndCosine, NearestPatch, NearPairs, reference
from protofast.ops.nearest_patch_within import pairs_within

EPS = 1e-4


@contextmanager
def environment(variable: str, value: str) -> Iterator[None]:
    """While this holds, the environment variable has this value."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


class Implementation:
    """One way to compute the operators, on tensors of its device.

    distance_tolerance: allowed |d - d*| / d* of float32 results at the location found.
    similarity_tolerance: allowed |s - s*|.
    """

    name = ""
    device = torch.device("cpu")
    precision = "float32"
    refine = "auto"
    distance_tolerance = 1e-6
    similarity_tolerance = 1e-6

    @property
    def refines_always(self) -> bool:
        """Whether every distance is a direct difference; else those far from 0 are not."""
        return self.distance_tolerance <= 1e-6

    @contextmanager
    def active(self) -> Iterator[None]:
        """While this holds, `torch.ops.protofast` on `device` is this implementation."""
        yield

    def nearest_patch(
        self,
        features: Tensor,
        prototypes: Tensor,
        metric: str = "squared_l2",
        similarity: str = "log",
        eps: float = EPS,
    ) -> NearestPatch:
        with self.active():
            return NearestPatch(
                *torch.ops.protofast.nearest_patch(
                    features,
                    prototypes,
                    metric,
                    similarity,
                    eps,
                    self.precision,
                    self.refine,
                )
            )

    def nearest_patches(
        self,
        features: Tensor,
        prototypes: Tensor,
        k: int,
        metric: str = "squared_l2",
        similarity: str = "log",
        eps: float = EPS,
    ) -> NearestPatch:
        with self.active():
            return NearestPatch(
                *torch.ops.protofast.nearest_patches(
                    features, prototypes, k, metric, similarity, eps
                )
            )

    def dot_and_cosine(self, features: Tensor, prototypes: Tensor) -> DotAndCosine:
        with self.active():
            return DotAndCosine(*torch.ops.protofast.dot_and_cosine(features, prototypes))

    def nearest_patch_within(
        self, features: Tensor, prototypes: Tensor, limits: Tensor, metric: str = "squared_l2"
    ) -> NearPairs:
        with self.active():
            return NearPairs(
                *torch.ops.protofast.nearest_patch_within(features, prototypes, limits, metric)
            )

    def nearest_patch_backward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        with self.active():
            result: tuple[Tensor, Tensor] = torch.ops.protofast.nearest_patch_backward(*arguments)
        return result

    def distance_map(
        self,
        features: Tensor,
        prototypes: Tensor,
        index: Tensor | None = None,
        metric: str = "squared_l2",
    ) -> Tensor:
        with self.active():
            result: Tensor = torch.ops.protofast.distance_map(features, prototypes, index, metric)
        return result

    def distance_map_backward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        with self.active():
            result: tuple[Tensor, Tensor] = torch.ops.protofast.distance_map_backward(*arguments)
        return result


class CompiledCpu(Implementation):
    """The compiled kernels for one instruction set."""

    def __init__(self, name: str) -> None:
        self.name = name

    @contextmanager
    def active(self) -> Iterator[None]:
        with environment("PROTOFAST_CPU", self.name):
            yield

    def is_supported(self) -> bool:
        with self.active():
            try:
                torch.ops.protofast.cpu_isa()
            except RuntimeError:
                return False
        return True


class Cuda(Implementation):
    """The compiled kernels for GPUs.

    path: what PROTOFAST_GPU names, `plain`, `tensor_cores` or `wgmma`; "" lets the operator choose.
    """

    device = torch.device("cuda")

    def __init__(self, path: str = "", precision: str = "float32", refine: str = "auto") -> None:
        self.name = "_".join(filter(None, ("cuda", path, refine)))
        self.path = path
        self.precision = precision
        self.refine = refine
        if path != "plain" and refine != "always":
            self.distance_tolerance = 1e-4
            self.similarity_tolerance = 5e-5

    @contextmanager
    def active(self) -> Iterator[None]:
        with environment("PROTOFAST_GPU", self.path):
            yield


class Reference(Implementation):
    """Plain PyTorch, on the CPU."""

    name = "reference"

    def nearest_patch(
        self,
        features: Tensor,
        prototypes: Tensor,
        metric: str = "squared_l2",
        similarity: str = "log",
        eps: float = EPS,
    ) -> NearestPatch:
        return NearestPatch(*reference.nearest_patch(features, prototypes, metric, similarity, eps))

    def nearest_patches(
        self,
        features: Tensor,
        prototypes: Tensor,
        k: int,
        metric: str = "squared_l2",
        similarity: str = "log",
        eps: float = EPS,
    ) -> NearestPatch:
        return NearestPatch(
            *reference.nearest_patches(features, prototypes, k, metric, similarity, eps)
        )

    def dot_and_cosine(self, features: Tensor, prototypes: Tensor) -> DotAndCosine:
        dots, _, here = self.nearest_patch(features, prototypes, "dot", "linear")
        cosines, _, there = self.nearest_patch(features, prototypes, "cosine", "linear")
        return DotAndCosine(dots, here, cosines, there)

    def nearest_patch_within(
        self, features: Tensor, prototypes: Tensor, limits: Tensor, metric: str = "squared_l2"
    ) -> NearPairs:
        found = self.nearest_patch(features, prototypes, metric, "linear")
        return pairs_within(found, limits)

    def nearest_patch_backward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        *rest, need_features, need_prototypes = arguments
        grad_features, grad_prototypes = reference.nearest_patch_backward(*rest)
        return (
            grad_features if need_features else grad_features.new_empty(0),
            grad_prototypes if need_prototypes else grad_prototypes.new_empty(0),
        )

    def distance_map(
        self,
        features: Tensor,
        prototypes: Tensor,
        index: Tensor | None = None,
        metric: str = "squared_l2",
    ) -> Tensor:
        return reference.distance_map(features, prototypes, index, metric)

    def distance_map_backward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return reference.distance_map_backward(*arguments)
