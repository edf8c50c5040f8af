"""What tests of small runs share: stopping them, watching their batches, comparing them."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protofast.data import Batch, Batches, Splits
from protofast.training import Perturb, Result, RunFolder, Settings, train
from protofast.training.progress import Silence

Tiny = Callable[..., Settings]
"""Settings of a tiny run; arguments are overrides ``a.b=c``."""


class _StopAfter(Silence):
    """Sets an event after so many calls from inside the loop, wherever that is."""

    def __init__(self, event: threading.Event, calls: int) -> None:
        self.event, self.calls = event, calls

    def advance(self, *args: object, **kwargs: object) -> None:
        self.calls -= 1
        if self.calls == 0:
            self.event.set()


def train_for(calls: int, settings: Settings | None, path: Path, **options: Any) -> Result:
    """Trains until the loop has told of its progress so many times, or to the end.

    A call is a batch: of an epoch, of a projection, of a test, or of the search for where the
    prototypes start.
    """
    stop = threading.Event()
    return train(settings, path, stop=stop, progress=_StopAfter(stop, calls), **options)


def train_in_pieces(
    every: int,
    settings: Settings,
    path: Path,
    *,
    perturb: Callable[[], Perturb] | None = None,
    **options: Any,
) -> tuple[Result, int]:
    """Trains to the end, stopped after every so many calls; returns the number of starts too.

    Each start has a function of its own that perturbs, as each process would.
    """
    starts, result = 0, None
    while result is None or not result.finished:
        attack = None if perturb is None else perturb()
        result = train_for(every, settings, path, resume=starts > 0, perturb=attack, **options)
        starts += 1
        assert starts < 50
    return result, starts


def timeless(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of a run without what tells the time."""
    return [
        {key: value for key, value in row.items() if "second" not in key} for row in folder.rows()
    ]


def tensors(folder: RunFolder, which: str = "latest") -> dict[str, Tensor]:
    """All that a checkpoint holds: weights, moments, random states, sums of the epoch."""
    return folder.read(which)[1]


def different(one: RunFolder, other: RunFolder) -> list[str]:
    """Names of the tensors in which the latest checkpoints of two runs differ."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def assert_same_end(one: RunFolder, other: RunFolder) -> None:
    """Two runs have ended with the same bits, the same numbers and the same best checkpoint."""
    assert different(one, other) == []
    assert timeless(one) == timeless(other)
    assert one.pointer("best") == other.pointer("best")


def prototype_table(folder: RunFolder) -> list[dict[str, Any]]:
    """Where each prototype comes from, as the run has written it down."""
    rows: list[dict[str, Any]] = json.loads(
        (folder.path / "prototypes" / "prototypes.json").read_text()
    )
    return rows


def distances_to_sources(folder: RunFolder, birds: Splits) -> list[float]:
    """How far each prototype of the latest checkpoint is from the image that it comes from."""
    images = next(iter(Batches(birds.project, len(birds.project)))).images
    with torch.no_grad():
        distances = folder.load_model("latest").model(images).distances
    rows = prototype_table(folder)
    return [float(distances[row["image_index"], row["prototype"]]) for row in rows]


@dataclass(frozen=True)
class Perturbing:
    """What a function that perturbs is called with, see `protofast.training.Perturb`."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    index: Tensor
    epoch: int
    strength: float


def perturb_by(answer: Callable[[Perturbing], Tensor | None]) -> Perturb:
    """A function that perturbs, of one argument in place of six."""

    def perturb(
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        index: Tensor,
        epoch: int,
        strength: float,
    ) -> Tensor | None:
        return answer(Perturbing(model, images, labels, index, epoch, strength))

    return perturb


def random_batch(count: int = 9) -> Batch:
    """Random images of three classes in turn, which are not the first of their data set."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    return Batch(torch.rand(count, 3, 32, 32, generator=generator), labels, torch.arange(count) + 5)
