"""Small pictures and data sets, written by the tests themselves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, height: int = 24, width: int = 32) -> Image.Image:
    """A smooth picture that JPEG keeps nearly as it is; another one for every seed."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def write_picture() -> Callable[..., Path]:
    """Writes a picture into a file, with the folders that it needs, and returns the file."""

    def write(path: Path, seed: int = 0, **options: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, **options).save(path)
        return path

    return write


@pytest.fixture
def cub_folder(tmp_path: Path, write_picture: Callable[..., Path]) -> Path:
    """A data set in the layout of CUB-200-2011: 3 classes of 2 training images and 1 test image."""
    root = tmp_path / "cub"
    lines: dict[str, list[str]] = {
        name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    }
    names = ["001.Finch", "002.Warbler", "003.Shrike"]
    for image in range(9):
        label, number = image // 3, image % 3
        path = f"{names[label]}/{number}.jpg"
        write_picture(root / "images" / path, image)
        lines["images"].append(f"{image + 1} {path}")
        lines["image_class_labels"].append(f"{image + 1} {label + 1}")
        lines["train_test_split"].append(f"{image + 1} {int(number != 1)}")
        lines["bounding_boxes"].append(f"{image + 1} 4.6 2.0 20.9 16.0")
    for name, content in lines.items():
        (root / f"{name}.txt").write_text("\n".join(content) + "\n")
    classes = [f"{k + 1} {name}" for k, name in enumerate(names)]
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root
