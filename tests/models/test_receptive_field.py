import pytest

from protofast.models import build_backbone, receptive_field
from protofast.models.receptive_field import Window

# [grid, jump, size, start] at 224 pixels, as ProtoPNet's receptive_field.py gives them.
ORIGINAL = {
    "resnet18": (7, 32, 435, 0.5),
    "resnet34": (7, 32, 899, 0.5),
    "resnet50": (7, 32, 427, 0.5),
    "resnet152": (7, 32, 1451, 0.5),
    "vgg16": (7, 32, 212, 16),
    "vgg16_bn": (7, 32, 212, 16),
    "vgg19": (7, 32, 268, 16),
    "vgg19_bn": (7, 32, 268, 16),
    "densenet121": (7, 32, 2071, 14.5),
    "densenet161": (7, 32, 2967, 14.5),
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_receptive_fields_are_the_originals(name):
    field = receptive_field(build_backbone(name).windows, (224, 224))
    assert (field.grid[0], field.jump, field.size, field.start) == ORIGINAL[name]
    assert field.grid[1] == field.grid[0]


def test_boxes_are_clipped_to_the_image():
    field = receptive_field(build_backbone("small").windows, (112, 64))
    assert (field.grid, field.image, field.jump) == ((7, 4), (112, 64), 16)
    assert field.box(0) == (0, 0, int(0.5 + field.size / 2), int(0.5 + field.size / 2))
    row, column = 3, 2
    x0, y0, x1, y1 = field.box(row * 4 + column)
    assert (y0, y1) == (
        max(int(0.5 + row * 16 - field.size / 2), 0),
        min(int(0.5 + row * 16 + field.size / 2), 112),
    )
    assert 0 <= x0 < x1 <= 64
    for location in (-1, 28):
        with pytest.raises(ValueError, match=rf"grid of \(7, 4\); got {location}"):
            field.box(location)


def test_by_hand():
    field = receptive_field([Window(3, 2, 1), Window(2, 2, 0)], (9, 17))
    assert field.grid == (2, 4)
    assert (field.jump, field.size, field.start) == (4, 5, 1.5)


def test_an_image_too_small_is_named():
    with pytest.raises(ValueError, match="8 x 8 pixels is too small"):
        receptive_field([Window(3, 2, 0)] * 4, (8, 8))
