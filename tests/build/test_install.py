"""What the build does without a compiler, when told not to compile, and with a wrong switch."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "tests", "docs", "runs")


def run(folder: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the source tree, with whatever was built into it."""
    return Path(shutil.copytree(ROOT, tmp_path / "source", ignore=LEFT_OUT))


def build_wheel(source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    pip_wheel = [sys.executable, "-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps"]
    return run(source, *pip_wheel, "-w", source.parent / "wheels", **environment)


def test_without_build_a_wheel_of_python_files_alone(source: Path) -> None:
    done = build_wheel(source, PROTOFAST_BUILD="0")
    assert done.returncode == 0, done.stderr
    (wheel,) = (source.parent / "wheels").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "protofast/ops/nearest_patch.py" in names
    assert "protofast/training/recipes/paper.toml" in names
    assert "protofast/report/templates/report.html" in names
    assert not [name for name in names if name.endswith((".so", "build_facts.json"))]


def test_without_a_compiler_the_install_stops_and_names_the_way_out(source: Path) -> None:
    done = build_wheel(source, CXX="/no/such/compiler")
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "no working C++ compiler was found" in said
    assert "PROTOFAST_BUILD=0" in said


def test_modules_deleted_since_an_earlier_build_stay_out_of_the_wheel(source: Path) -> None:
    stale = source / "build" / "lib" / "protofast" / "deleted_long_ago.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    done = build_wheel(source, PROTOFAST_BUILD="0")
    assert done.returncode == 0, done.stderr
    (wheel,) = (source.parent / "wheels").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "protofast/layers.py" in names
    assert "protofast/deleted_long_ago.py" not in names


def test_another_compiler_is_taken_than_the_one_before(source: Path) -> None:
    """CMake alone would keep the compiler that it found first."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    first = run(source, *command, CXX="g++", PROTOFAST_CUDA="1", CUDACXX="/no/such/nvcc")
    assert "PROTOFAST_CUDA=1, but" in " ".join(first.stderr.split())  # found g++, and went on
    second = run(source, *command, CXX="/no/such/compiler")
    assert "no working C++ compiler was found" in " ".join(second.stderr.split())


@pytest.mark.parametrize("switch", ["PROTOFAST_BUILD", "PROTOFAST_CUDA"])
def test_a_switch_is_0_or_1(source: Path, switch: str) -> None:
    done = run(source, sys.executable, "setup.py", "--quiet", "build_ext", **{switch: "yes"})
    assert done.returncode != 0
    assert f"{switch} must be 0 or 1; got 'yes'" in done.stderr
