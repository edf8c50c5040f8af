"""Asks CMake to build the libraries; CMakeLists.txt says of what and how.

PROTOFAST_BUILD=0        installs the pure-PyTorch package: nothing is compiled
PROTOFAST_CUDA=0|1       leaves the CUDA kernels out, or stops where they cannot be built
PROTOFAST_CUDA_ARCHS     compute capabilities to build for, such as "80,90a,120+PTX"
PROTOFAST_WERROR=1       compiler warnings are errors (the project's own CI)
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BUILT_FILES = ("_C.*.so", "libprotofast_*", "build_facts.json", ".*.partial")


def switch(name: str) -> str:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"protofast: {name} must be 0 or 1; got {value!r}")
    return value


class CMakeBuild(build_ext):
    """Builds and installs with CMake, into the wheel or (editable) into the source tree."""

    def run(self) -> None:
        self._package = ROOT / "protofast" if self.inplace else Path(self.build_lib, "protofast")
        build_folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        version = self.distribution.get_version()
        try:
            found, last = surroundings(), build_folder / "surroundings.json"
            fresh = [] if last.exists() and last.read_text() == found else ["--fresh"]
            last.unlink(missing_ok=True)
            settings = [*fresh, *optional_settings()]
            subprocess.run([*configure(build_folder, version), *settings], check=True)
            last.write_text(found)
            subprocess.run([find("cmake"), "--build", build_folder, *self._jobs()], check=True)
            staged = build_folder / "staged"
            remove_built_files(staged)
            install = [find("cmake"), "--install", build_folder, "--prefix", staged]
            subprocess.run(install, check=True)
            replace_built_files(staged, self._package)
        except subprocess.CalledProcessError as failure:
            sys.exit(
                f"protofast: {Path(failure.cmd[0]).name} failed; its messages above say why. "
                "PROTOFAST_BUILD=0 installs the package without compiled kernels."
            )

    def _jobs(self) -> list[str]:
        return ["--parallel", str(self.parallel)] if self.parallel else []

    def get_outputs(self) -> list[str]:
        return [] if self.inplace else [str(path) for path in built_files(self._package)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class FreshPython(build_py):
    """Copies the package anew: modules deleted since an earlier build must not get into a wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "protofast"), ignore_errors=True)
        super().run()


class PurePython(FreshPython):
    """PROTOFAST_BUILD=0: an earlier editable build must not live on in the source tree."""

    def run(self) -> None:
        if self.editable_mode:
            remove_built_files(ROOT / "protofast")
        super().run()


def configure(build_folder: Path, version: str) -> list[str | Path]:
    return [
        find("cmake"),
        *("-S", ROOT, "-B", build_folder, "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={find('ninja')}",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPROTOFAST_PYTHON={sys.executable}",
        f"-DPROTOFAST_VERSION={version}",
    ]


def surroundings() -> str:
    """What CMake looks for once and keeps: where it changed, everything is looked for anew."""
    variables = {name: os.environ.get(name) for name in ("CXX", "CUDACXX", "CUDA_HOME")}
    programs = {name: shutil.which(name) for name in ("c++", "g++", "clang++", "nvcc")}
    return json.dumps({"source": str(ROOT), **variables, **programs})


def optional_settings() -> list[str]:
    """What is not set is passed empty, so that no earlier build's choice is kept."""
    return [
        f"-DPROTOFAST_WERROR={switch('PROTOFAST_WERROR') or '0'}",
        f"-DPROTOFAST_CUDA={switch('PROTOFAST_CUDA')}",
        f"-DPROTOFAST_CUDA_ARCHS={os.environ.get('PROTOFAST_CUDA_ARCHS', '').replace(';', ',')}",
    ]


def find(program: str) -> str:
    """The program on the PATH (build isolation puts its own first) or beside this Python."""
    beside_python = str(Path(sys.executable).parent)
    search = os.pathsep.join([os.environ.get("PATH", ""), beside_python])
    path = shutil.which(program, path=search)
    if path is None:
        sys.exit(
            f"protofast: {program} is needed to build; install it with `pip install {program}`"
        )
    return path


def built_files(package: Path) -> list[Path]:
    return sorted(path for pattern in BUILT_FILES for path in package.glob(pattern))


def remove_built_files(package: Path) -> None:
    for path in built_files(package):
        path.unlink()


def replace_built_files(staged: Path, package: Path) -> None:
    """Each file at once: a Python that uses the old one goes on, and none sees half a file."""
    new = built_files(staged)
    for path in built_files(package):
        if path.name not in {file.name for file in new}:
            path.unlink()
    package.mkdir(parents=True, exist_ok=True)
    for path in new:
        partial = package / f".{path.name}.partial"
        shutil.copy2(path, partial)
        partial.replace(package / path.name)


if switch("PROTOFAST_BUILD") == "0":
    setup(cmdclass={"build_py": PurePython})
else:
    setup(
        ext_modules=[Extension("protofast._C", sources=[])],
        cmdclass={"build_ext": CMakeBuild, "build_py": FreshPython},
    )
