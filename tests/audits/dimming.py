"""A small audit on real components: how much of its similarity a prototype keeps in the dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from PIL import Image
from pydantic import Field

from protofast.audits import Audit, AuditResult, AuditSettings, Number, Picture, Subject
from protofast.audits.audit import Row
from protofast.audits.statistics import mean_number, share_number
from protofast.data import ImageSet, open_birds
from protofast.data.randomness import permutation
from protofast.models import ProtoPNet, build_backbone

CLASSES, PER_CLASS, SIZE = 3, 8, 32
IMAGES = CLASSES * PER_CLASS
UNITS = IMAGES // 4  # of one model


class DimmingSettings(AuditSettings):
    """How dark, and how many images."""

    brightness: Annotated[float, Field(gt=0, le=1)] = 0.5
    images: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] = 2
    unit: Annotated[int, Field(ge=1)] = 4


class Dimming(Audit[DimmingSettings]):
    """Every third image is skipped with a reason; the last number is one that JSON cannot hold."""

    name: ClassVar[str] = "dimming"
    title: ClassVar[str] = "Dimming"
    protocols: ClassVar = {
        "paper": DimmingSettings(),
        "released": DimmingSettings(protocol="released", brightness=0.25),
    }

    def units(self, subject: Subject) -> list[list[int]]:
        wanted = self.settings.images or len(subject.images)
        order = permutation(len(subject.images), subject.seed, 77)[:wanted].tolist()
        size = self.settings.unit
        return [order[at : at + size] for at in range(0, len(order), size)]

    def measure(self, subject: Subject, positions: Sequence[int]) -> list[Row]:
        images = subject.load(positions)
        with torch.no_grad():
            before = subject.model(images).activations.amax(dim=1)
            after = subject.model(images * self.settings.brightness).activations.amax(dim=1)
        kept = (after / before).tolist()
        return [self._row(subject, at, value) for at, value in zip(positions, kept, strict=True)]

    def _row(self, subject: Subject, position: int, kept: float) -> Row:
        known: dict[str, Any] = {"image": position, "name": subject.images.names[position]}
        if position % 3 == 0:
            return {**known, "skipped": "too dark already"}
        return {**known, "kept": kept, "cells": [position, None], "infinite": float("inf")}

    def summarise(self, subject: Subject, rows: Sequence[Row]) -> list[Number]:
        kept = [row["kept"] for row in rows if "kept" in row]
        infinite = Number(key="infinite", label="infinite", value=float("-inf"))
        darker = [value < 1 for value in kept]
        return [
            mean_number("kept", "similarity kept", kept, better="higher"),
            share_number("darker", "less similar", darker, better="lower"),
            infinite,
        ]

    def pictures(self, subject: Subject, rows: Sequence[Row], folder: Path) -> list[Picture]:
        shown = []
        for row in [row for row in rows if "kept" in row][:2]:
            pixels = subject.images.image(row["image"])
            files = {"clean": f"{row['image']}-clean.png", "dark": f"{row['image']}-dark.png"}
            for file, factor in zip(files.values(), (1.0, self.settings.brightness), strict=True):
                dimmed = (pixels * factor).to(torch.uint8).permute(1, 2, 0).numpy()
                Image.fromarray(dimmed).save(folder / file)
            caption = f"keeps {row['kept']:.3f}"
            shown.append(Picture(files=files, caption=caption, image=row["name"]))
        return shown


class Counting(Dimming):
    """Notes each unit that is really measured, and each drawing; can be told to fail."""

    def __init__(self, settings: DimmingSettings, *, fail_at: int | None = None) -> None:
        super().__init__(settings)
        self.measured: list[list[int]] = []
        self.drawn = 0
        self.fail_at = fail_at

    def measure(self, subject: Subject, positions: Sequence[int]) -> list[Row]:
        if self.fail_at == len(self.measured):
            raise KeyboardInterrupt
        self.measured.append(list(positions))
        return super().measure(subject, positions)

    def pictures(self, subject: Subject, rows: Sequence[Row], folder: Path) -> list[Picture]:
        self.drawn += 1
        return super().pictures(subject, rows, folder)


Run = Callable[..., tuple[AuditResult, Counting]]
"""Runs the small audit, with what is given changed; see conftest.py."""


def timeless(folder: Path) -> bytes:
    """The bytes of audit.json without its times."""
    text = (folder / "audit.json").read_text()
    return text[: text.index(' "times": {')].encode()


def small_model(seed: int = 0) -> ProtoPNet:
    """An untrained network of the birds' classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ProtoPNet(
            build_backbone("small"),
            num_classes=CLASSES,
            prototypes_per_class=2,
            depth=8,
            input_size=(SIZE, SIZE),
        )


def small_birds(folder: Path) -> ImageSet:
    """24 rendered test images."""
    return open_birds(
        classes=CLASSES,
        train_per_class=1,
        test_per_class=PER_CLASS,
        size=SIZE,
        cache=folder,
        threads=1,
    ).test
