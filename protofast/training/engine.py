"""What surrounds the loop: Fabric, signals, determinism, and agreement between ranks."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from protofast.errors import ProtofastError, SettingsError
from protofast.training.settings import TrainingSettings


def build_fabric(settings: TrainingSettings, device: torch.device | None = None) -> Fabric:
    """Lightning Fabric, launched: under torchrun with its ranks, else with those of the settings.

    Raises:
        SettingsError: The device or precision cannot be had.
    """
    # What Fabric says about precision and devices stands in environment.json.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    accelerator, nodes = settings.accelerator, settings.nodes
    devices: int | list[int] = settings.devices
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif device is not None and device.index is not None and device.type == "cuda":
        devices = [device.index]
    on_cpu = "cpu" in (accelerator, device and device.type) or not torch.cuda.is_available()
    if settings.precision == "16-mixed" and on_cpu:
        raise SettingsError("training.precision = 16-mixed needs a GPU; on the CPU use bf16-mixed")
    several = nodes > 1 or devices not in (1, [device.index if device is not None else 0])
    try:
        fabric = Fabric(
            accelerator=accelerator if device is None else device.type,
            devices=devices,
            num_nodes=nodes,
            strategy="ddp" if several else "auto",
            precision=settings.precision,
        )
        fabric.launch()
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(
            f"training.accelerator = {accelerator}, devices = {settings.devices}, precision = "
            f"{settings.precision} cannot be had here: {reason}"
        ) from error
    return fabric


def precision_state(fabric: Fabric) -> dict[str, Any]:
    """What mixed precision adapts as it goes (the scale of float16's gradients), as JSON values."""
    return dict(fabric.strategy.precision.state_dict())


def restore_precision(fabric: Fabric, state: dict[str, Any]) -> None:
    """The inverse of :func:`precision_state`; what another precision left is passed over."""
    if state and precision_state(fabric):
        fabric.strategy.precision.load_state_dict(state)


def on_first_rank(fabric: Fabric, action: Callable[[], None]) -> None:
    """Does something on the first rank; if it fails there, every rank fails.

    Raises:
        ProtofastError, OSError: On the first rank the error itself, elsewhere one with its message.
    """
    error: Exception | None = None
    if fabric.is_global_zero:
        try:
            action()
        except (ProtofastError, OSError) as caught:
            error = caught
    if fabric.world_size > 1:
        message = fabric.broadcast("" if error is None else f"{type(error).__name__}: {error}")
        if message and error is None:
            raise ProtofastError(f"the first rank failed: {message}")
    if error is not None:
        raise error


@contextlib.contextmanager
def stop_on_signals(event: threading.Event) -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM set the event, once; the next one acts as usual.

    Does nothing outside the main thread, where Python does not allow it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None is a handler that was not set from Python, which could not be put back.
    before = {number: handler for number, handler in handlers.items() if handler is not None}

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def determinism(fabric: Fabric, wanted: bool) -> Iterator[None]:
    """Asks for deterministic algorithms on CUDA while a run goes on; on the CPU they always are."""
    if not wanted or fabric.device.type != "cuda":
        yield
        return
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = before[2], before[3]
