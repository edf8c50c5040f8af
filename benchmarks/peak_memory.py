"""The most memory that one step of a layer takes beyond its inputs, measured in a fresh process.

On the CPU the growth of the resident set's high-water mark, as the kernel counts it, outputs and
gradients included; on a GPU the growth of what the allocator has given out.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from baselines import fresh
from layer_runs import Run, Shape, make_inputs, make_step


def peak_bytes(run: Run) -> int:
    """Measure `run` in a process of its own (CPU: Linux); ours, which is small, in three."""
    command = [sys.executable, __file__, json.dumps(run.facts())]
    found = []
    for _ in range(3 if run.layer == "ours" else 1):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"measuring the memory of {run} failed:\n{done.stderr}")
        found.append(int(done.stdout.split()[-1]))
    return sorted(found)[len(found) // 2]


def main(facts: dict[str, Any]) -> int:
    # As where the step is timed: other convolutions would take other memory.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    facts.pop("flops")
    shape = Shape(**facts.pop("shape"))
    run = Run(shape, **facts)
    step = make_step(run, make_inputs(run), fresh(run.layer))
    step()  # threads, primitives and compiled code, which stay; all else is given back below
    if run.device == "cuda":
        return _cuda_growth(step)
    return _resident_growth(step)


def _resident_growth(step: Callable[[], object]) -> int:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    results = step()
    growth = _status("VmHWM") - before
    del results
    return growth


def _cuda_growth(step: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = step()
    growth = torch.cuda.max_memory_allocated() - before
    del results
    return growth


def _status(name: str) -> int:
    """Bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    print(main(json.loads(sys.argv[1])))
