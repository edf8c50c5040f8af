"""Loading of the compiled operator libraries, and the facts of the build they came from.

An installed package holds `libprotofast_cpu`, perhaps `libprotofast_cuda`, and `build_facts.json`.
A package installed with PROTOFAST_BUILD=0, and a source tree before its first build, hold none of
them: then the operators' plain-PyTorch reference runs, and importing says so once.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from protofast.errors import InstallError

_FOLDER = Path(__file__).parent
_CPU_LIBRARY = _FOLDER / "libprotofast_cpu.so"
_CUDA_LIBRARY = _FOLDER / "libprotofast_cuda.so"
_FACTS = _FOLDER / "build_facts.json"
_REINSTALL = "`pip install --force-reinstall --no-deps .` in protofast's source folder"

_loaded: list[str] = []


def load_libraries() -> None:
    """Load the operator libraries that are installed and that this torch can use.

    The CUDA library is loaded where torch was built with CUDA, whether or not there is a GPU.
    Without any library this warns (UserWarning), and the reference remains what runs.

    Raises:
        InstallError: a library is there but does not load; the message says what to do.
    """
    if _loaded:
        return
    if not _CPU_LIBRARY.exists():
        warnings.warn(
            "protofast is installed without its compiled operators: plain PyTorch runs in their "
            f"place, slower and with more memory. {_REINSTALL}, with a C++ compiler and without "
            "PROTOFAST_BUILD=0, builds them",
            stacklevel=2,
        )
        return
    _load(_CPU_LIBRARY)
    _loaded.append("cpu")
    if _CUDA_LIBRARY.exists() and torch.version.cuda is not None:
        _load(_CUDA_LIBRARY)
        _loaded.append("cuda")


def loaded_libraries() -> tuple[str, ...]:
    """The libraries that are loaded: `cpu`, `cuda`."""
    return tuple(_loaded)


def facts() -> dict[str, Any]:
    """How the installed libraries were built (`build_facts.json`); empty without them."""
    if not _FACTS.exists():
        return {}
    found: dict[str, Any] = json.loads(_FACTS.read_text(encoding="utf-8"))
    return found


def _load(library: Path) -> None:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        message = (
            f"{library.name} does not load into torch {torch.__version__}; it was built against "
            f"torch {facts().get('torch', '(unknown)')} and needs torch >= 2.10. {_REINSTALL} "
            "builds it for the torch that is installed, and with PROTOFAST_BUILD=0 installs "
            f"protofast without compiled operators. The loader said: {error}"
        )
        if _is_command() and os.environ.get("PROTOFAST_TRACEBACK") != "1":
            sys.exit(f"protofast: {' '.join(message.split())}")
        raise InstallError(message) from error


def _is_command() -> bool:
    """Whether this process is `protofast` or `python -m protofast.cli`.

    Its errors are one line each; this one comes up before the command line itself can be imported.
    """
    modules = [name for option, name in pairwise(sys.orig_argv) if option == "-m"]
    return Path(sys.argv[0]).stem == "protofast" or modules[:1] == ["protofast.cli"]
