"""`python -m protofast.info [--json]`: what is installed, what would run here, is it right.

Needs torch alone. Every operator is run and compared with its reference in float64; the exit code
is 1 if one disagrees.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from protofast import _build
from protofast.ops import (
    distance_map,
    dot_and_cosine,
    masked_view,
    mean_distance,
    nearest_patch,
    nearest_patch_within,
    nearest_patches,
    reference,
    reference_masked_view,
)
from protofast.ops._library import cpu_instruction_set

# An operator's result and what the reference gives, and the function that makes a few such pairs.
_Result = tuple[Tensor, Tensor]
_Results = Callable[[Tensor, Tensor], Iterator[_Result]]

_PAIRS = (
    *((metric, kind) for metric in ("squared_l2", "l2") for kind in ("log", "linear", "exp")),
    ("dot", "linear"),
    ("cosine", "linear"),
)
# Largest error allowed, as a part of the largest number expected (or of 1), by the result's dtype.
_BOUNDS = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 1e-2,
}


def collect(self_check: bool = True) -> dict[str, Any]:
    """What `protofast info --json` prints: versions, build, devices, kernels and the self-check.

    Args:
        self_check: run every operator against its reference (well under a second on a CPU).

    Returns:
        JSON values. `build` is empty for the pure-PyTorch package; `self_check` is None if not
        asked for, else holds `passed` and a row for each operator, device and dtype.
    """
    return {
        "protofast": _version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "build": _build.facts(),
        "libraries": list(_build.loaded_libraries()),
        "cpu": _cpu(),
        "cuda": _cuda(),
        "self_check": _self_check() if self_check else None,
    }


def format_text(info: dict[str, Any]) -> str:
    """The result of `collect` as lines for a person."""
    build, cpu, cuda = info["build"], info["cpu"], info["cuda"]
    lines = [
        f"protofast {info['protofast']}, Python {info['python']}, torch {info['torch']}",
        info["platform"],
        f"CPU: {cpu['kernel']} kernels, {cpu['threads']} threads on {cpu['cores']} cores",
        f"CUDA: {cuda['state']}",
    ]
    lines += [
        f"  GPU {number}: {device['name']}, compute capability {device['capability']}, "
        f"{device['memory_gib']} GiB"
        + ("" if device["compiled"] else "; no kernels compiled for it")
        for number, device in enumerate(cuda["devices"])
    ]
    if build:
        lines.append(f"build: {build['compiler']}, torch {build['torch']}, {build['flags']}")
        if build["cuda_architectures"]:
            architectures = ", ".join(build["cuda_architectures"])
            lines.append(f"  nvcc {build['nvcc']} for compute capabilities {architectures}")
        else:
            lines.append(f"  no CUDA kernels: {build['cuda_missing']}")
    else:
        lines.append("build: none (the pure-PyTorch package); every operator is plain PyTorch")
    if info["self_check"] is not None:
        lines += ["self-check, largest error against the reference in float64:"]
        lines += _check_lines(info["self_check"]["operators"])
        lines.append("all operators agree" if info["self_check"]["passed"] else "self-check FAILED")
    return "\n".join(lines)


def _check_lines(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each operator and device."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        error = row.get("message") or f"{row['error']:.1e}"
        verdict = "" if row["passed"] else " WRONG"
        line = lines.setdefault((row["operator"], row["device"]), [])
        line.append(f"{row['dtype']} {error}{verdict}")
    return [f"  {name} on {device}: {', '.join(part)}" for (name, device), part in lines.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="protofast info",
        description="Shows versions, devices and kernels, and checks every operator.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--no-check", action="store_true", help="do not run the operators")
    options = parser.parse_args(arguments)
    info = collect(self_check=not options.no_check)
    print(json.dumps(info, indent=2) if options.json else format_text(info))
    return 0 if options.no_check or info["self_check"]["passed"] else 1


def _version() -> str:
    try:
        return importlib.metadata.version("protofast")
    except importlib.metadata.PackageNotFoundError:  # a source folder on the path, not installed
        return str(_build.facts().get("version", "not installed"))


def _cpu() -> dict[str, Any]:
    features: dict[str, bool] = {}
    try:
        from protofast import _C

        features = dict(_C.cpu_features())
    except ImportError:  # the pure-PyTorch package, or built without Python's headers
        pass
    return {
        "kernel": cpu_instruction_set(),
        "features": features,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _cuda() -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
        count = torch.cuda.device_count() if available else 0
    if torch.version.cuda is None:
        state = "this torch was built without it"
    elif not available:
        reason = f" ({said[0].message})" if said else ""
        state = f"torch has CUDA {torch.version.cuda}, but there is no usable GPU{reason}"
    elif "cuda" in _build.loaded_libraries():
        state = f"torch has CUDA {torch.version.cuda}; protofast's kernels are loaded"
    else:
        state = f"torch has CUDA {torch.version.cuda}; protofast has no kernels, plain PyTorch runs"
    return {
        "torch": torch.version.cuda,
        "available": available,
        "state": state,
        "devices": [_device(number) for number in range(count)],
    }


def _device(number: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(number)
    capability = (properties.major, properties.minor)
    architectures = _build.facts().get("cuda_architectures", [])
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "compiled": any(_runs_on(architecture, capability) for architecture in architectures),
    }


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for `architecture`, such as 80, 90a or 12.0+PTX, runs on a GPU."""
    name = architecture.removesuffix("+PTX").replace(".", "")
    compiled = (int(name.rstrip("af")[:-1]), int(name.rstrip("af")[-1]))
    if name.endswith("a"):
        return capability == compiled
    if architecture.endswith("+PTX") and capability >= compiled:
        return True
    return capability[0] == compiled[0] and capability[1] >= compiled[1]


# ---------------------------------------------------------------- self-check


def _self_check() -> dict[str, Any]:
    devices = [torch.device("cpu")]
    if "cuda" in _build.loaded_libraries() and torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    rows = [
        _check(name, results, device, dtype)
        for name, results in _CHECKS.items()
        for device in devices
        for dtype in _BOUNDS
    ]
    return {"passed": all(row["passed"] for row in rows), "operators": rows}


def _check(
    name: str, results: _Results, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """One row: the largest error of the operator's results, and whether all are within bounds."""
    row = {"operator": name, "device": device.type, "dtype": str(dtype).removeprefix("torch.")}
    largest, passed = 0.0, True
    try:
        for got, expected in results(*_inputs(device, dtype)):
            error = _relative_error(got, expected)
            largest = max(largest, error)
            passed = passed and error <= _BOUNDS.get(got.dtype, 0.0)
    except RuntimeError as error:  # what a kernel raises, for example on a GPU it was not built for
        return {**row, "error": None, "passed": False, "message": str(error).splitlines()[0]}
    return {**row, "error": largest, "passed": passed}


def _relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, as a part of the largest number expected or of 1; 1e300 if not finite."""
    difference = (got.double() - expected.double()).abs().max().item()
    scale = max(1.0, expected.double().abs().max().item())
    return difference / scale if math.isfinite(difference) else 1e300


def _inputs(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Features [3, 37, 5, 7], channels-last, and prototypes [19, 37], one equal to a patch."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 37, 5, 7, generator=generator).to(dtype)
    prototypes = torch.randn(19, 37, generator=generator).to(dtype)
    prototypes[4] = features[1, :, 2, 3]
    features = features.to(device).to(memory_format=torch.channels_last)
    return features.requires_grad_(), prototypes.to(device).requires_grad_()


def _nearest_patch_results(features: Tensor, prototypes: Tensor) -> Iterator[_Result]:
    wide = features.detach().double(), prototypes.detach().double()
    for metric, kind in _PAIRS:
        got = nearest_patch(features, prototypes, metric=metric, similarity=kind)
        yield from zip(got, reference.nearest_patch(*wide, metric, kind, 1e-4), strict=True)


def _nearest_patch_gradients(features: Tensor, prototypes: Tensor) -> Iterator[_Result]:
    for metric, kind in _PAIRS:
        # The log-similarity is too steep at the projected patch for a comparison of slopes.
        away = prototypes if kind != "log" else prototypes + 1
        found = nearest_patch(features, away, metric=metric, similarity=kind)
        weights = torch.linspace(-1, 1, found.distances.numel(), device=features.device)
        weights = weights.view_as(found.distances).to(found.distances.dtype)
        loss = (weights * found.activations).sum() + (weights.flip(0) * found.distances).sum()
        got = torch.autograd.grad(loss, (features, prototypes))
        wide = features.detach().double(), away.detach().double()
        _, distances, locations = reference.nearest_patch(*wide, metric, kind, 1e-4)
        expected = reference.nearest_patch_backward(
            weights, weights.flip(0), *wide, distances, locations, metric, kind, 1e-4
        )
        yield from zip(got, expected, strict=True)


def _nearest_patch_within_results(features: Tensor, prototypes: Tensor) -> Iterator[_Result]:
    wide = features.detach().double(), prototypes.detach().double()
    for metric in dict(_PAIRS):
        _, distances, locations = reference.nearest_patch(*wide, metric, "linear", 1e-4)
        limits = distances[1] + 1e-3 * distances[1].abs()
        near = distances <= limits
        got = nearest_patch_within(features, prototypes, limits, metric=metric)
        yield from zip(got, (*near.nonzero().t(), distances[near], locations[near]), strict=True)


def _nearest_patches_results(features: Tensor, prototypes: Tensor) -> Iterator[_Result]:
    wide = features.detach().double(), prototypes.detach().double()
    for metric, kind in _PAIRS:
        got = nearest_patches(features, prototypes, 3, metric=metric, similarity=kind)
        yield from zip(got, reference.nearest_patches(*wide, 3, metric, kind, 1e-4), strict=True)


def _dot_and_cosine_results(features: Tensor, prototypes: Tensor) -> Iterator[_Result]:
    wide = features.detach().double(), prototypes.detach().double()
    found = dot_and_cosine(features, prototypes)
    for metric, got in (("dot", found[:2]), ("cosine", found[2:])):
        values, _, locations = reference.nearest_patch(*wide, metric, "linear", 1e-4)
        yield from zip(got, (values, locations), strict=True)


def _distance_map_results(features: Tensor, prototypes: Tensor) -> Iterator[_Result]:
    index = torch.tensor([[4, 0], [4, 18], [7, 7]], device=features.device)
    wide = features.detach().double(), prototypes.detach().double()
    for metric in dict(_PAIRS):
        for chosen in (None, index):
            got = distance_map(features, prototypes, index=chosen, metric=metric)
            yield got, reference.distance_map(*wide, chosen, metric)


def _distance_map_gradients(features: Tensor, prototypes: Tensor) -> Iterator[_Result]:
    index = torch.tensor([[4, 0], [4, 18], [7, 7]], device=features.device)
    wide = features.detach().double(), prototypes.detach().double()
    for metric in dict(_PAIRS):
        distances = distance_map(features, prototypes, index=index, metric=metric)
        weights = torch.linspace(-1, 1, distances.numel(), device=features.device)
        weights = weights.view_as(distances).to(distances.dtype)
        got = torch.autograd.grad((weights * distances).sum(), (features, prototypes))
        expected = reference.distance_map_backward(weights.double(), *wide, index, metric)
        yield from zip(got, expected, strict=True)


def _mean_distance_results(features: Tensor, prototypes: Tensor) -> Iterator[_Result]:
    wide = features.detach().double(), prototypes.detach().double()
    expected = reference.distance_map(*wide, None, "squared_l2").mean(dim=(2, 3))
    yield mean_distance(features, prototypes), expected


def _masked_view_results(features: Tensor, prototypes: Tensor) -> Iterator[_Result]:
    images = features.flatten(2).unsqueeze(1)  # [3, 1, 37, 35]
    maps, fill = features.detach()[:, :4], features.detach()[0, :1, 0, 0]
    got = masked_view(images, maps, quantile=0.8, fill=fill)
    expected = reference_masked_view.masked_view(images.detach(), maps, 0.8, fill)
    yield from zip(got, expected, strict=True)


def _masked_view_gradients(features: Tensor, prototypes: Tensor) -> Iterator[_Result]:
    images = features.flatten(2).unsqueeze(1)
    views, masks = masked_view(images, features.detach()[:, :4], quantile=0.8)
    weights = torch.linspace(-1, 1, views.numel(), device=views.device).view_as(views)
    (grad,) = torch.autograd.grad((weights * views).sum(), images)
    shown = masks.unflatten(0, (3, 4))
    yield grad, reference_masked_view.masked_view_backward(weights.to(views.dtype), shown)


_CHECKS: dict[str, _Results] = {
    "nearest_patch": _nearest_patch_results,
    "nearest_patch_backward": _nearest_patch_gradients,
    "nearest_patch_within": _nearest_patch_within_results,
    "nearest_patches": _nearest_patches_results,
    "dot_and_cosine": _dot_and_cosine_results,
    "distance_map": _distance_map_results,
    "distance_map_backward": _distance_map_gradients,
    "mean_distance": _mean_distance_results,
    "masked_view": _masked_view_results,
    "masked_view_backward": _masked_view_gradients,
}


if __name__ == "__main__":
    sys.exit(main())
