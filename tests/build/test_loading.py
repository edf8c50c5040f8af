"""How the package behaves with its libraries, without them, and with one that does not load."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import protofast
from protofast import _build
from protofast.ops._library import cpu_instruction_set

PACKAGE = Path(protofast.__file__).parent
USE = """
import torch, protofast
print(protofast.nearest_patch(torch.zeros(1, 2, 3, 3), torch.zeros(4, 2)).distances.sum().item())
"""


def copy_package(folder: Path, *left_out: str) -> Path:
    shutil.copytree(
        PACKAGE, folder / "protofast", ignore=shutil.ignore_patterns("__pycache__", *left_out)
    )
    return folder / "protofast"


def run_with(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def require_build() -> None:
    if not _build.loaded_libraries():
        if os.environ.get("PROTOFAST_REQUIRE_BUILD") == "1":
            pytest.fail("PROTOFAST_REQUIRE_BUILD=1, but the compiled operators are not installed")
        pytest.skip("needs the compiled operators")


def test_the_installed_libraries_are_loaded() -> None:
    require_build()
    assert "cpu" in _build.loaded_libraries()
    assert cpu_instruction_set() in ("avx512vnni", "avx512", "avx2", "portable")
    facts = _build.facts()
    assert facts["torch_abi"] == "2.10"
    assert facts["compiler"]


def test_the_module_and_the_file_state_the_same_facts() -> None:
    require_build()
    module = pytest.importorskip("protofast._C")
    assert module.build_facts() == _build.facts()
    assert all(isinstance(value, bool) for value in module.cpu_features().values())


@pytest.mark.parametrize("library", ["libprotofast_cpu.so", "libprotofast_cuda.so"])
def test_a_library_needs_the_stable_abi_alone(library: str) -> None:
    """No C++ symbol of torch, whose meaning changes between versions, and no CUDA driver."""
    require_build()
    path = PACKAGE / library
    if not path.exists():
        pytest.skip(f"{library} is not built")
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", path], text=True).split()
    of_torch = [name for name in symbols if re.match(r"_Z(T[ISV])?N?K?(3c10|2at|5torch)", name)]
    assert of_torch == []
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in symbols)
    header = subprocess.check_output(["objdump", "-p", path], text=True)
    needed = {line.split()[1] for line in header.splitlines() if "NEEDED" in line}
    assert not [name for name in needed if name.startswith(("libcuda.", "libcudart", "libc10"))]
    assert "RPATH" not in header
    assert "RUNPATH" not in header


def test_without_libraries_one_warning_and_the_reference(tmp_path: Path) -> None:
    copy_package(tmp_path, "*.so", "build_facts.json")
    script = USE + "import sys, protofast.layers, protofast.info; sys.exit(protofast.info.main([]))"
    done = run_with(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0.0\n")
    assert done.stderr.count("without its compiled operators") == 1
    assert "PROTOFAST_BUILD=0" in done.stderr
    assert "reference kernels" in done.stdout
    assert "pure-PyTorch package" in done.stdout


def test_a_library_that_does_not_load_says_what_to_do(tmp_path: Path) -> None:
    package = copy_package(tmp_path, "*.so")
    (package / "libprotofast_cpu.so").write_bytes(b"\x7fELF, but truncated")
    done = run_with(tmp_path, USE)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("protofast.errors.InstallError: libprotofast_cpu.so does not load")
    assert "pip install --force-reinstall" in last
    assert "PROTOFAST_BUILD=0" in last


@pytest.mark.parametrize("program", ["script", "module"])
def test_the_command_line_says_so_in_one_line(tmp_path: Path, program: str) -> None:
    package = copy_package(tmp_path, "*.so")
    (package / "libprotofast_cpu.so").write_bytes(b"\x7fELF, but truncated")
    script = tmp_path / "bin" / "protofast"  # as pip makes it
    script.parent.mkdir()
    script.write_text("from protofast.cli import main\nmain()\n")
    done = subprocess.run(
        [sys.executable, *([script] if program == "script" else ["-m", "protofast.cli"]), "info"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("protofast: libprotofast_cpu.so does not load into torch")
    assert done.stdout == ""


def test_the_cpu_library_stands_alone(tmp_path: Path) -> None:
    require_build()
    copy_package(tmp_path, "libprotofast_cuda.so", "_C.*")
    done = run_with(tmp_path, USE + "print(protofast._build.loaded_libraries())")
    assert done.returncode == 0, done.stderr
    assert "('cpu',)" in done.stdout
    assert done.stderr == ""
