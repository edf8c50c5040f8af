"""The parts of an audit's work: each is one audit of one model under one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protofast.audits.audit import Audit, Subject

_DRAWN = 8  # images that are attacked once more, to be drawn


@dataclass(frozen=True)
class Part:
    """One audit of one model under one protocol.

    Attributes:
        path: ``<model>/<audit>-<protocol>``.
        subject: The model and the images.
        audit: What is measured.
        model: Number of the model.
        units: Positions of the images of each unit.
        marks: Fingerprint of each unit.
        computed: How it is computed now; see `protofast.audits.computed`.
    """

    path: str
    subject: Subject
    audit: Audit[Any]
    model: int
    units: list[list[int]]
    marks: list[str]
    computed: str

    @property
    def label(self) -> str:
        """What is being done, in words."""
        return f"{self.audit.title} ({self.audit.settings.protocol}), {self.subject.name}"

    @property
    def effort(self) -> int:
        """What an image costs."""
        return self.audit.effort

    @property
    def drawing(self) -> int:
        """What the numbers and pictures cost."""
        return _DRAWN * self.effort

    @property
    def work(self) -> int:
        """What all of it costs."""
        return self.effort * sum(map(len, self.units)) + self.drawing

    @property
    def blocks(self) -> list[list[int]]:
        """Numbers of the units that are measured together: a batch of images at most, or one unit.

        They do not depend on what is done already: an audit that was interrupted goes on in the
        same batches as one that was not, so that it ends in the same digits.
        """
        found: list[list[int]] = []
        held = 0
        for number, unit in enumerate(self.units):
            held += len(unit)
            if not found or held > self.subject.batch_size:
                found.append([])
                held = len(unit)
            found[-1].append(number)
        return found
