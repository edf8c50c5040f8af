"""Time and memory of the prototype layer: ours, and every baseline, over shapes and dtypes.

The layers of one group are run one after the other on the same inputs. Before a layer is timed, its
results are compared with ours (ours with those of the best eager form).
"""

from typing import Any

import pytest
from baselines import fresh
from layer_runs import Inputs, Outputs, Run, check, make_inputs, make_step, runs
from machine import devices
from peak_memory import peak_bytes
from timing import captured, measure, synchronised
from torch._functorch import config as compiling

pytestmark = [
    pytest.mark.benchmark(timer=synchronised),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch"),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    quick = metafunc.config.getoption("--quick")
    found = [run for name in devices(metafunc.config) for run in runs(quick=quick, device=name)]
    metafunc.parametrize("run", found, ids=str)


class _Shared:
    """Inputs of the group that is being run, our results on them, and those of `eager`."""

    group = ""
    inputs: Inputs
    results: dict[str, Outputs]


def _prepare(run: Run) -> Inputs:
    if _Shared.group != run.group:
        _Shared.group, _Shared.results = "", {}
        inputs = make_inputs(run)
        _Shared.results = {
            name: make_step(run, inputs, fresh(name))() for name in ("ours", "eager")
        }
        _Shared.inputs, _Shared.group = inputs, run.group
    return _Shared.inputs


def test_nearest_patch(benchmark: Any, run: Run, quick: bool) -> None:
    benchmark.group = run.group
    benchmark.extra_info.update(measured="layer", **run.facts())
    inputs = _prepare(run)
    expected = _Shared.results["eager" if run.layer == "ours" else "ours"]
    # Only a graph whose buffers are not given away can be gone through more than once.
    donate = run.steps != "backward"
    with compiling.patch(donated_buffer=donate):
        step = make_step(run, inputs, fresh(run.layer))
        check(run, step(), expected)
        if run.device == "cuda":
            step = captured(step)
        measure(benchmark, step, seconds=0.2 if quick else 0.4)
    if run.memory:
        benchmark.extra_info["peak_bytes"] = peak_bytes(run)
