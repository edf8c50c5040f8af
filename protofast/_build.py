"""Loading of the compiled operator libraries, and the facts of the build they came from.

An installed package holds `libprotofast_cpu`, perhaps `libprotofast_cuda`, and `build_facts.json`.
A package installed with PROTOFAST_BUILD=0, and a source tree before its first build, hold none of
them: then the operators' plain-PyTorch reference runs, and importing says so once.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parent
_CPU_LIBRARY = _FOLDER / "libprotofast_cpu.so"
_CUDA_LIBRARY = _FOLDER / "libprotofast_cuda.so"
_FACTS = _FOLDER / "build_facts.json"

REINSTALL = "pip install --force-reinstall --no-deps ."

_loaded: list[str] = []


def load_libraries() -> None:
    """Load the operator libraries that are installed and that this torch can use.

    Warns (UserWarning) where none is installed. The CUDA library is loaded where torch was built with
    CUDA, whether or not there is a GPU.

    Raises:
        ImportError: a library is there but does not load; the message says what to do.
    """
    if _loaded:
        return
    if not _CPU_LIBRARY.exists():
        warnings.warn(
            "protofast is installed without its compiled operators: plain PyTorch runs instead, "
            "slower and with more memory. With a C++ compiler, "
            f"`{REINSTALL}` in the source folder builds them (without PROTOFAST_BUILD=0).",
            stacklevel=2,
        )
        return
    _load(_CPU_LIBRARY, "cpu")
    if _CUDA_LIBRARY.exists() and torch.version.cuda is not None:
        _load(_CUDA_LIBRARY, "cuda")


def loaded_libraries() -> tuple[str, ...]:
    """Which libraries are loaded: `cpu`, `cuda`."""
    return tuple(_loaded)


def facts() -> dict[str, Any]:
    """How the installed libraries were built (`build_facts.json`); empty without them."""
    if not _FACTS.exists():
        return {}
    return dict(json.loads(_FACTS.read_text(encoding="utf-8")))


def _load(path: Path, name: str) -> None:
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        built = facts().get("torch", "an unknown version")
        raise ImportError(
            f"protofast: {path.name} does not load into torch {torch.__version__} (built against "
            f"torch {built}, needs torch >= 2.10): {error}. Build it anew for this torch with "
            f"`{REINSTALL}` in the source folder, or install with PROTOFAST_BUILD=0 to do without "
            "compiled operators."
        ) from error
    _loaded.append(name)
