"""How units of work are computed, and what is said of those that were computed otherwise before.

The last digits of a result depend on the device, on a CPU on its instructions and the number of
threads, and on how many images go through a model at once. None of this makes a finished unit
wrong, so it is kept; but it is told, and ``audit.json`` says of each number what was computed how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from protofast.audits.files import Unit

_ON_CPU, _ON_GPU = 16, 64  # more are not faster on a CPU, and an interruption costs more


def images_at_once(device: torch.device, asked: int | None) -> int:
    """How many images go through a model at once; None is asked for where the device decides."""
    if asked is not None:
        return asked
    return _ON_CPU if device.type == "cpu" else _ON_GPU


def how(device: torch.device, batch_size: int) -> str:
    """What the last digits of this process's results depend on, in words.

    Args:
        device: Where the model computes.
        batch_size: Images that go through it at once.
    """
    batches = f"batches of {batch_size}"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        capability = torch.backends.cpu.get_cpu_capability()
        return f"CPU ({capability}), {threads} thread{'s' * (threads > 1)}, {batches}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {batches}"


def images_computed(units: Sequence[Unit]) -> dict[str, int]:
    """How many images were computed how, the first unit's way in front."""
    counts: Counter[str] = Counter()
    for unit in units:
        counts[unit.computed] += unit.images
    return dict(counts)


@dataclass
class Earlier:
    """What earlier calls left of the units that are asked for now.

    Attributes:
        kept: How many units are used again, by how they were computed.
        now: How the units of the same models are computed now.
        stale: How many are there, but of other weights, images, settings or code.
    """

    kept: Counter[str] = field(default_factory=Counter)
    now: set[str] = field(default_factory=set)
    stale: int = 0

    def remarks(self, folder: str) -> Iterator[str]:
        """What a user would want to know before the work goes on.

        Args:
            folder: The audit folder.
        """
        if self.stale:
            yield (
                f"{folder}: finished work of other weights, images, settings, code or versions "
                f"({_units(self.stale)}) is computed anew"
            )
        others = {way: count for way, count in self.kept.items() if way not in self.now}
        if others:
            listed = "; ".join(f"{_units(count)}: {way}" for way, count in others.items())
            yield (
                f"{folder}: finished work is kept that was computed otherwise ({listed}; now: "
                f"{'; '.join(sorted(self.now))}), so last digits may differ from those of an audit "
                "computed in one way; audit.json says what was computed how. To compute all of it "
                "anew, choose another folder (--out)"
            )


def _units(count: int) -> str:
    return f"{count} unit{'s' * (count > 1)}"
