"""What the tests of the spatial-misalignment benchmark share: networks that look where a test says.

Images of 32 x 32 pixels, cells of 8 x 8, and a mean that a pixel of 128 has exactly.
"""

import pytest
import torch
from torch import Tensor, nn

from protofast.audits.audit import Number, Row, Subject
from protofast.audits.misalignment_attack import PAPER, RELEASED, MisalignmentSettings
from protofast.audits.spatial_misalignment import SpatialMisalignment
from protofast.data import ImageSet
from protofast.data.image_set import MemoryImageSet
from protofast.models import ProtoPNet

CELL, GRID, SIZE = 8, 4, 32
FILL = 128
BRIGHT = (250, 20, 20)
RED, GREEN, BLUE = torch.eye(3)

both_protocols = pytest.mark.parametrize("settings", [PAPER, RELEASED], ids=["paper", "released"])


class Shifted(nn.Module):
    """Each location sees the cell two rows and columns further."""

    def forward(self, features: Tensor) -> Tensor:
        return features.roll((2, 2), dims=(2, 3))


def cells(*more: nn.Module) -> nn.Sequential:
    """Each location sees the mean colour of its own cell, and nothing else."""
    return nn.Sequential(nn.AvgPool2d(CELL), *more)


def network(backbone: nn.Module, prototypes: Tensor, classes: list[int], **options) -> ProtoPNet:
    """Similarity is the dot product of colours and prototypes [P, 3], without any bias."""
    options = {"metric": "dot", "similarity": "linear"} | options
    model = ProtoPNet(
        backbone,
        num_classes=max(classes) + 1,
        prototype_class=classes,
        depth=3,
        backbone_depth=3,
        input_size=(SIZE, SIZE),
        mean=[FILL / 255] * 3,
        std=[0.5] * 3,
        **options,
    )
    model.add_on = nn.Identity()
    with torch.no_grad():
        model.prototypes.copy_(prototypes)
    return model.eval().requires_grad_(False)


def subject(model, pixels: Tensor, labels: list[int], **options) -> Subject:
    """A model and images [n, 3, S, T], uint8."""
    names = [f"image-{n}.png" for n in range(len(pixels))]
    classes = [f"class {c}" for c in range(model.num_classes)]
    source = ImageSet(
        classes=classes, labels=labels, names=names, channels=3, size=tuple(pixels.shape[2:])
    )
    images = MemoryImageSet(pixels, source=source)
    with torch.no_grad():
        predictions = model((pixels / 255).to(model.mean.dtype)).logits.argmax(dim=1)
    return Subject(
        name="a model",
        model=model,
        images=images,
        predictions=predictions,
        correct_in_all=predictions == images.labels,
        **options,
    )


def one_bright_cell(rows: list[int], columns: list[int], colour: tuple[int, int, int]) -> Tensor:
    """Images of the fill, but for one cell each: uint8 [n, 3, 32, 32]."""
    pixels = torch.full((len(rows), 3, SIZE, SIZE), FILL, dtype=torch.uint8)
    for n, (row, column) in enumerate(zip(rows, columns, strict=True)):
        cell = pixels[n, :, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        cell.copy_(torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1))
    return pixels


def patchwork(count: int, *, seed: int = 0) -> Tensor:
    """Images whose cells have random colours: uint8 [count, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(90, 170, (count, 3, GRID, GRID), generator=generator)
    return colours.to(torch.uint8).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)


def of_twelve_colours(backbone: nn.Module) -> ProtoPNet:
    """Four classes of three prototypes each, of random colours."""
    colours = torch.randn(12, 3, generator=torch.Generator().manual_seed(2))
    return network(backbone, colours, [j // 3 for j in range(12)])


def rows_of(settings: MisalignmentSettings, examined: Subject) -> list[Row]:
    """What the audit measures."""
    audit = SpatialMisalignment(settings)
    return [row for unit in audit.units(examined) for row in audit.measure(examined, unit)]


def numbers_of(settings: MisalignmentSettings, examined: Subject) -> dict[str, Number]:
    """What the audit makes of it."""
    audit = SpatialMisalignment(settings)
    found = audit.summarise(examined, rows_of(settings, examined))
    return {number.key: number for number in found}
