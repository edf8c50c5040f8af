"""The implementations that the operators' tests run on: every instruction set, CUDA, the reference.

What this machine or this installation lacks is skipped by name. PROTOFAST_REQUIRE_BUILD=1 turns the
skips of a package without compiled kernels into failures, PROTOFAST_REQUIRE_CUDA=1 those without a
GPU.
"""

import os
import warnings
from collections.abc import Iterator

import pytest
import torch

with warnings.catch_warnings():  # the pure-PyTorch package says on import that it is one
    warnings.simplefilter("ignore")
    import protofast.ops  # noqa: F401

from implementations import CompiledCpu, Cuda, Implementation, Reference

from protofast import _build

CUDA = {
    implementation.name: implementation
    for implementation in (
        Cuda(),
        Cuda("plain"),
        Cuda("tensor_cores"),
        Cuda("tensor_cores", refine="always"),
        Cuda("wgmma"),
        Cuda("wgmma", refine="always"),
    )
}
# Only `nearest_patch` has several paths on a GPU; tests of other operators take the default.
TESTS_OF_PATHS = {
    "test_nearest_patch.py",
    "test_nearest_patch_backward.py",
    "test_numerics_contract.py",
    "test_properties.py",
}
# These as well have code of their own for AVX-512 VNNI.
TESTS_OF_VNNI = {
    "test_instruction_sets.py",
    "test_nearest_patch_within.py",
    "test_packed_prototypes.py",
    "test_rounding.py",
    "test_windows.py",
}
NAMES = ("reference", "avx512vnni", "avx512", "avx2", "portable", *CUDA)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the named paths of a GPU, and VNNI, where they are the same code as without."""

    def runs_twice(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)  # of parametrized tests alone
        if callspec is None or item.path.name in TESTS_OF_PATHS:
            return False
        name = callspec.params.get("implementation", "")
        if name == "avx512vnni":
            return item.path.name not in TESTS_OF_VNNI
        implementation = CUDA.get(name)
        return implementation is not None and implementation.path != ""

    items[:] = [item for item in items if not runs_twice(item)]


def _missing(reason: str, variable: str) -> None:
    if os.environ.get(variable) == "1":
        pytest.fail(f"{variable}=1, but {reason}")
    pytest.skip(reason)


def _require_cuda(path: str) -> None:
    if not torch.cuda.is_available() or "cuda" not in _build.loaded_libraries():
        _missing("no GPU, or protofast's CUDA kernels are not built", "PROTOFAST_REQUIRE_CUDA")
    capability = torch.cuda.get_device_capability()
    if path == "tensor_cores" and capability < (8, 0):
        pytest.skip("this GPU is older than the tensor cores' path")
    if path == "wgmma" and (
        capability != (9, 0) or "90a" not in _build.facts()["cuda_architectures"]
    ):
        pytest.skip("no Hopper GPU, or not built for 90a")


@pytest.fixture(params=["tensor_cores", "wgmma"])
def path(request: pytest.FixtureRequest) -> str:
    """The paths by tensor cores, as PROTOFAST_GPU names them."""
    name: str = request.param
    _require_cuda(name)
    return name


@pytest.fixture(scope="session", params=NAMES)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    """One way to compute the operators; the test runs once for each."""
    name: str = request.param
    if name == "reference":
        return Reference()
    if name in CUDA:
        _require_cuda(CUDA[name].path)
        return CUDA[name]
    if "cpu" not in _build.loaded_libraries():
        _missing("protofast's CPU kernels are not built", "PROTOFAST_REQUIRE_BUILD")
    cpu = CompiledCpu(name)
    if not cpu.is_supported():
        pytest.skip(f"this machine has no {name}")
    return cpu


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Restores the number of torch's threads after a test that changes it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
