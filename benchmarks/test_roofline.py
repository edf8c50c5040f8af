"""What the machine can do at most, measured on the spot: the ceilings of everything else here.

Multiply-adds in registers, copying of memory that no cache holds, and torch's matrix product.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from machine import devices
from timing import measure, synchronised

pytestmark = pytest.mark.benchmark(timer=synchronised, group="roofline")
SOURCE = Path(__file__).parent / "fma_peak.cpp"


@pytest.fixture(scope="module")
def fma_library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    """fma_peak.cpp, compiled for this machine."""
    if "cpu" not in devices(request.config):
        # In a report of several files it would take the place of another machine's peak.
        pytest.skip("a ceiling of the CPU, which is not measured")
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler: the multiply-add peak is not measured")
    path = tmp_path_factory.mktemp("roofline") / "fma_peak.so"
    flags = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-pthread", str(SOURCE), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.run_fma.argtypes = (ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_float)
    library.run_fma.restype = ctypes.c_float
    library.flops_per_repeat.restype = ctypes.c_int64
    return library


def test_fma_peak(benchmark: Any, fma_library: ctypes.CDLL) -> None:
    threads = torch.get_num_threads()
    repeats = 1 << 21  # about 20 ms
    # A chain of x -> factor x + summand comes to rest at summand / (1 - factor) = 1.
    assert fma_library.run_fma(repeats, 1, 0.5, 0.5) == fma_library.flops_per_repeat() / 2
    flops = repeats * threads * fma_library.flops_per_repeat()
    benchmark.extra_info.update(measured="roofline", device="cpu", flops=flops)
    measure(benchmark, lambda: fma_library.run_fma(repeats, threads, 0.5, 0.5), seconds=1.0)


def test_copy_bandwidth(benchmark: Any, device: str) -> None:
    source = torch.rand(1 << 26, device=device)  # 256 MiB
    target = torch.empty_like(source)
    bytes_moved = 2 * source.numel() * source.element_size()
    benchmark.extra_info.update(measured="roofline", device=device, bytes=bytes_moved)
    measure(benchmark, lambda: target.copy_(source), seconds=1.0)
    assert torch.equal(target, source)


@pytest.mark.parametrize("size", [(3920, 2000, 128), (2048, 2048, 2048)], ids=str)
def test_matrix_rate(benchmark: Any, device: str, size: tuple[int, int, int]) -> None:
    """The shape of the headline layer, and one that is easy for every library."""
    rows, columns, depth = size
    left = torch.rand(rows, depth, device=device)
    right = torch.rand(depth, columns, device=device)
    result = torch.empty(rows, columns, device=device)
    facts = {"device": device, "flops": 2 * rows * columns * depth, "size": list(size)}
    benchmark.extra_info.update(measured="roofline", **facts)
    measure(benchmark, lambda: torch.mm(left, right, out=result), seconds=1.0)
