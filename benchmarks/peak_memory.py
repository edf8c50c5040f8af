"""The most memory that one step of a layer takes beyond its inputs, measured in a fresh process.

On the CPU the growth of the resident set's high-water mark, as the kernel counts it, outputs and
gradients included; on a GPU the growth of what the allocator has given out.
"""

import ctypes
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from baselines import fresh
from layer_runs import Run, Shape, make_inputs, make_step


def peak_bytes(run: Run) -> int:
    """Measure `run` in a process of its own (CPU: Linux)."""
    command = [sys.executable, __file__, json.dumps(run.facts())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {run} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def main(facts: dict[str, object]) -> int:
    facts.pop("flops")
    shape = Shape(**facts.pop("shape"))  # type: ignore[arg-type]
    run = Run(shape, **facts)  # type: ignore[arg-type]
    layer = fresh(run.layer)
    if run.layer == "compiled":
        make_step(run, make_inputs(run), layer)()
    else:  # thread pools and primitives, without the memory that the real shape takes
        small = replace(run, shape=replace(shape, N=2, P=min(shape.P, 64)))
        make_step(small, make_inputs(small), layer)()
    step = make_step(run, make_inputs(run), layer)
    if run.device == "cuda":
        return _cuda_growth(step)
    return _resident_growth(step)


def _resident_growth(step: object) -> int:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    results = step()  # type: ignore[operator]
    growth = _status("VmHWM") - before
    del results
    return growth


def _cuda_growth(step: object) -> int:
    step()  # type: ignore[operator]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = step()  # type: ignore[operator]
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
