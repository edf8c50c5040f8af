"""What the benchmarks know about the machine: its devices, and facts for the report."""

from typing import Any

import pytest
import torch

from protofast import _build
from protofast.ops._library import cpu_instruction_set


def devices(config: pytest.Config) -> list[str]:
    """The devices to measure on: those that are there, or the one that --device names."""
    there = ["cpu"]
    if torch.cuda.is_available() and "cuda" in _build.loaded_libraries():
        there.append("cuda")
    return [name for name in there if config.getoption("--device") in (None, name)]


def facts(config: pytest.Config) -> dict[str, Any]:
    """JSON values that pytest-benchmark does not collect by itself."""
    build = _build.facts()
    return {
        "protofast": build.get("version", ""),
        "compiler": build.get("compiler", ""),
        "cuda_architectures": build.get("cuda_architectures", []),
        "cpu_kernels": cpu_instruction_set(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if "cuda" in devices(config) else None,
        "tf32": torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32,
        "quick": bool(config.getoption("--quick")),
    }
