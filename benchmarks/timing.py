"""How everything here is timed: a warm-up, then rounds for a share of a second, by the median."""

import time
from collections.abc import Callable
from typing import Any

import torch

# A round shorter than this would measure the clock.
ROUND_SECONDS = 2e-4
# So many rounds at most. The shortest steps, too, are timed for their share of a second: what else
# a machine does comes in bursts of a tenth.
ROUNDS = 2000


def synchronised() -> float:
    """Seconds; what was launched on a GPU before is done. The timer of all benchmarks."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(benchmark: Any, step: Callable[[], object], *, seconds: float) -> None:
    """Time `step` in about `seconds`; what takes longer is timed twice, without a warm-up.

    To be called after the results of `step` have been checked, which also warms it up.
    """
    start = synchronised()
    step()
    once = synchronised() - start
    iterations = max(1, min(1000, round(ROUND_SECONDS / max(once, 1e-7))))
    if once > 1:
        rounds, warm_up = (2 if once > 4 else 3), 0
    else:
        rounds, warm_up = max(5, min(ROUNDS, int(seconds / (once * iterations)))), 1
    benchmark.pedantic(step, rounds=rounds, warmup_rounds=warm_up, iterations=iterations)


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """`step` as a CUDA graph: only the GPU's work is timed, not Python's launches."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = step()

    def replay() -> object:
        graph.replay()
        return kept  # the graph writes into these

    return replay
