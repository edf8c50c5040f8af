"""Options of the benchmarks, and what they tell the report about the machine.

pytest --benchmark-only benchmarks/ [--quick] [--device cpu|cuda]
"""

import warnings
from typing import Any

import pytest
import torch

with warnings.catch_warnings():  # said below, in one line
    warnings.simplefilter("ignore")
    import machine

from protofast import _build


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("protofast")
    group.addoption("--quick", action="store_true", help="a small selection, under 90 seconds")
    group.addoption(
        "--device",
        choices=("cpu", "cuda"),
        help="only this device (without the option: the CPU, and the GPU where there is one)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if "cpu" not in _build.loaded_libraries():
        pytest.exit(
            "benchmarks need protofast's compiled operators, which this installation lacks "
            "(PROTOFAST_BUILD=0, or no build yet); `pip install .` with a C++ compiler builds them",
            returncode=4,
        )
    # That a benchmark which failed has timed nothing need not be said on top of why it failed.
    quiet = "ignore::pytest_benchmark.logger.PytestBenchmarkWarning"
    config.addinivalue_line("filterwarnings", quiet)
    if not machine.devices(config):
        pytest.exit("--device cuda needs a GPU and protofast's CUDA kernels", returncode=4)
    # cuDNN's convolutions take TF32 unless told otherwise: ten bits would not pass the comparisons.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A benchmark with the argument `device` runs on each."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", machine.devices(metafunc.config))


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether only a small selection is asked for."""
    return bool(request.config.getoption("--quick"))


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info.update(machine.facts(config))
