"""What surrounds the loop: the state of mixed precision, signals."""

import json
import signal
import threading

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from protofast.training.engine import precision_state, restore_precision, stop_on_signals


def _half(scale: float) -> Fabric:
    """A Fabric as for 16-mixed, whose scaler is allowed on the CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", "cpu", scaler))


def _step(fabric: Fabric, gradient: float) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = fabric.setup_optimizers(torch.optim.SGD([weight], lr=0.0))
    fabric.backward((weight * gradient).sum())
    optimizer.step()


def test_the_scale_of_half_precision_goes_on_where_it_was() -> None:
    fabric = _half(1024.0)
    for gradient in (1.0, torch.inf, 1.0, 1.0):
        _step(fabric, gradient)
    state = json.loads(json.dumps(precision_state(fabric), allow_nan=False))
    assert (state["scale"], state["_growth_tracker"]) == (512.0, 2)
    other = _half(65536.0)
    restore_precision(other, state)
    assert precision_state(other) == precision_state(fabric)
    for each in (fabric, other):
        _step(each, 1.0)  # the third good step in a row
    assert precision_state(other)["scale"] == precision_state(fabric)["scale"] == 1024.0


def test_a_state_of_another_precision_is_passed_over() -> None:
    full, half = Fabric(accelerator="cpu"), _half(1024.0)
    assert precision_state(full) == {}
    restore_precision(full, precision_state(half))
    restore_precision(half, {})
    assert precision_state(half)["scale"] == 1024.0


def test_a_handler_that_python_did_not_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    unknown = {signal.SIGINT: None, signal.SIGTERM: before}
    monkeypatch.setattr(signal, "getsignal", unknown.get)
    event = threading.Event()
    with stop_on_signals(event):
        signal.raise_signal(signal.SIGTERM)
    monkeypatch.undo()
    assert event.is_set()
    assert signal.getsignal(signal.SIGTERM) is before
