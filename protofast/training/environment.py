"""With what a run was made: versions, machine, threads, command (``environment.json``)."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.resources
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from protofast.files import write_atomically

_LIBRARIES = ("protofast", "torch", "torchvision", "lightning-fabric", "numpy", "safetensors")
# What must be the same for a resumed run to be bit-equal to one that was never interrupted.
_NUMERICS = (
    *("versions", "threads", "cpu", "cpu_capability", "gpus", "cuda", "ranks", "device"),
    "protofast_build",
)


def describe(*, device: str, ranks: int) -> dict[str, Any]:
    """This process's surroundings, as JSON values."""
    return {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": _platform(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "protofast_build": _build_facts(),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "device": device,
        "ranks": ranks,
    }


def record_start(folder: Path, environment: dict[str, Any]) -> list[str]:
    """Adds a start to ``environment.json``.

    Returns:
        What is different from the start before and may change the last bits of a resumed run.
    """
    path = folder / "environment.json"
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        starts = []
    if not (isinstance(starts, list) and all(isinstance(start, dict) for start in starts)):
        starts = []  # damaged
    write_atomically(path, json.dumps({"starts": [*starts, environment]}, indent=1) + "\n")
    if not starts:
        return []
    return [key for key in _NUMERICS if starts[-1].get(key) != environment[key]]


def _version(name: str) -> str | None:
    if name == "torch":
        return str(torch.__version__)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _build_facts() -> Any:
    """What the build wrote down, or None for the pure-PyTorch package."""
    facts = importlib.resources.files("protofast") / "build_facts.json"
    try:
        return json.loads(facts.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return os.uname().machine


def _platform() -> str:
    # platform.platform() starts a process, which, if this one is killed now, keeps the run's lock.
    here = os.uname()
    return f"{here.sysname}-{here.release}-{here.machine}-with-{''.join(platform.libc_ver())}"
