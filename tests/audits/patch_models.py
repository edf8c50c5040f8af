"""Models whose cells see their own pixels alone, and images that are given as numbers."""

import torch
from torch import Tensor, nn

from protofast.audits.audit import Subject
from protofast.data import ImageSet
from protofast.models import ProtoPNet


class GivenImages(ImageSet):
    """Images [n, channels, S, T] uint8."""

    def __init__(self, pixels: Tensor, labels: Tensor, classes: int) -> None:
        super().__init__(
            classes=[f"class {number}" for number in range(classes)],
            labels=labels,
            names=[f"image {number}" for number in range(len(pixels))],
            channels=pixels.shape[1],
            size=(pixels.shape[2], pixels.shape[3]),
        )
        self.pixels = pixels

    def image(self, index: int) -> Tensor:
        return self.pixels[index]


def patch_model(
    cell: int = 4, *, padding: int = 0, prototypes_per_class: int = 3, seed: int = 0, **options: str
) -> ProtoPNet:
    """A float64 network of one convolution, whose stride is its size: each cell sees its pixels."""
    torch.manual_seed(seed)
    depth = 6
    backbone = nn.Conv2d(3, depth, cell, stride=cell, padding=padding)
    model = ProtoPNet(
        backbone,
        num_classes=2,
        prototypes_per_class=prototypes_per_class,
        depth=depth,
        backbone_depth=depth,
        input_size=(28, 28),
        **options,
    )
    model.add_on = nn.Identity()
    with torch.no_grad():
        model.prototypes.copy_(torch.randn_like(model.prototypes))
    return model.double().eval().requires_grad_(False)


def map_model(*, prototypes_per_class: int = 1) -> ProtoPNet:
    """A network whose maps are the image's first channel in cells of 4 x 4 pixels."""
    model = ProtoPNet(
        nn.AvgPool2d(4),
        num_classes=2,
        prototypes_per_class=prototypes_per_class,
        depth=3,
        metric="dot",
        similarity="linear",
        mean=[0.0] * 3,
        std=[1.0] * 3,
        input_size=(28, 28),
        backbone_depth=3,
    )
    model.add_on = nn.Identity()
    with torch.no_grad():
        model.prototypes.zero_()
        model.prototypes[:, 0] = 1
    return model.double().eval().requires_grad_(False)


def image_of_cells(
    *peaks: tuple[int, int, int], grid: tuple[int, int] = (7, 7), base: int = 100
) -> Tensor:
    """An image, 4 x 4 pixels for each cell: `base`, with other values in the first channel."""
    cells = torch.full((3, *grid), base, dtype=torch.uint8)
    for row, column, value in peaks:
        cells[0, row, column] = value
    return cells.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)


def random_images(count: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Smooth random images, uint8 [count, 3, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    fine = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return fine.mul(255).round().to(torch.uint8)


def subject_of(
    model: ProtoPNet,
    pixels: Tensor,
    *,
    wrong: tuple[int, ...] = (),
    wrong_in_another: tuple[int, ...] = (),
    **options: int,
) -> Subject:
    """A model on images that it names rightly, but for some."""
    predictions = model(pixels.float() / 255).logits.argmax(dim=1)
    labels = predictions.clone()
    labels[list(wrong)] = 1 - labels[list(wrong)]
    in_all = predictions == labels
    in_all[list(wrong_in_another)] = False
    return Subject(
        name="model",
        model=model,
        images=GivenImages(pixels, labels, model.num_classes),
        predictions=predictions,
        correct_in_all=in_all,
        **options,
    )
