"""Networks that see JPEG's artefacts, or do not, and images to compress."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protofast.audits.audit import Number, Row, Subject
from protofast.audits.jpeg import JpegExperiment, JpegExperimentSettings
from protofast.data import ImageSet, MemoryImageSet
from protofast.models import ProtoPNet

SIZE = 32
ODD = {"data": {"jpeg": {"compressed": "odd", "quality": 20, "codec": "simplejpeg", "seed": 0}}}


class Smoothness(nn.Module):
    """Two channels per cell of 8 x 8 pixels: how smooth it is, and 1."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(dim=1, keepdim=True)
        pool = nn.functional.avg_pool2d
        smooth = 3 - 200 * (pool(grey**2, 8) - pool(grey, 8) ** 2)
        return torch.cat((smooth, torch.ones_like(smooth)), dim=1)


class MeanColour(nn.Module):
    """The mean colour of each cell, which hardly changes with compression."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 8)


def network(backbone: nn.Module, prototypes: Sequence[Sequence[float]], classes: list[int]):
    """Similarity is the dot product of the backbone's channels and the prototypes."""
    model = ProtoPNet(
        backbone,
        num_classes=max(classes) + 1,
        prototype_class=classes,
        depth=len(prototypes[0]),
        backbone_depth=len(prototypes[0]),
        input_size=(SIZE, SIZE),
        metric="dot",
        similarity="linear",
        mean=[0.5] * 3,
        std=[1.0] * 3,
    )
    model.add_on = nn.Identity()
    with torch.no_grad():
        model.prototypes.copy_(torch.tensor(prototypes))
    return model.eval().requires_grad_(False)


def artefact_detector() -> ProtoPNet:
    """Names class 1 what is smooth in places, as compressed noise is, and class 0 all else."""
    return network(Smoothness(), [[0.0, 1.6], [1.0, 0.0]], [0, 1])


def noise(count: int, classes: int = 2, channels: int = 3) -> MemoryImageSet:
    """Grey noise, all classes alike; class k is that of every image n with n % classes = k."""
    generator = torch.Generator().manual_seed(0)
    grey = 128 + 30 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    pixels = grey.clamp(0, 255).to(torch.uint8).repeat(1, channels, 1, 1)
    source = ImageSet(
        classes=[f"class {k}" for k in range(classes)],
        labels=[n % classes for n in range(count)],
        names=[f"image-{n}" for n in range(count)],
        channels=channels,
        size=(SIZE, SIZE),
    )
    return MemoryImageSet(pixels, source=source)


def subject(model: ProtoPNet, images: ImageSet, **options: Any) -> Subject:
    unused = torch.zeros(len(images), dtype=torch.int64)
    return Subject(
        name="model",
        model=model,
        images=images,
        predictions=unused,
        correct_in_all=unused == 0,
        **options,
    )


def run(audit: JpegExperiment, on: Subject) -> tuple[list[Row], dict[str, Number]]:
    rows = [row for unit in audit.units(on) for row in audit.measure(on, unit)]
    return rows, {number.key: number for number in audit.summarise(on, rows)}


def paper(**options: Any) -> JpegExperiment:
    return JpegExperiment(JpegExperimentSettings(**options))
