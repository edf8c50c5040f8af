from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from protofast.data import decode_image, open_cars
from protofast.errors import DataError

savemat = pytest.importorskip("scipy.io").savemat

NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van 2012"]
FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")


def write_annotations(file: Path, rows: list[tuple[object, ...]]) -> None:
    """A struct array as the data set's own files have it."""
    array = np.zeros((1, len(rows)), dtype=[(name, object) for name in FIELDS])
    for number, row in enumerate(rows):
        array[0, number] = row
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, {"annotations": array})


@pytest.fixture
def cars_folder(tmp_path: Path, write_picture: Callable[..., Path]) -> Path:
    root = tmp_path / "cars"
    for folder, file, per_class in (
        ("cars_train", root / "devkit" / "cars_train_annos.mat", 2),
        ("cars_test", root / "devkit" / "cars_test_annos_withlabels.mat", 1),
    ):
        rows = []
        for image in range(3 * per_class):
            name = f"{image + 1:05d}.jpg"
            write_picture(root / folder / name, image)
            rows.append((5, 3, 24, 18, image // per_class + 1, name))
        write_annotations(file, rows)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([NAMES], dtype=object)})
    return root


def test_the_official_split(cars_folder: Path) -> None:
    train, project, test = open_cars(cars_folder, size=16)
    assert project is train
    assert train.classes == test.classes == tuple(NAMES)
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels.tolist() == [0, 1, 2]
    assert train.names[0] == "cars_train/00001.jpg"
    assert train[0].image.shape == (3, 16, 16)


def test_boxes_count_from_one_and_include_their_ends(cars_folder: Path) -> None:
    cropped = open_cars(cars_folder, size=None).test
    whole = decode_image(cars_folder / "cars_test" / "00001.jpg")
    assert torch.equal(cropped[0].image, whole[:, 2:18, 4:24])
    assert torch.equal(open_cars(cars_folder, size=None, crop=False).test[0].image, whole)


def test_some_classes(cars_folder: Path) -> None:
    train = open_cars(cars_folder, size=8, classes=[NAMES[2], NAMES[0]]).train
    assert train.classes == (NAMES[0], NAMES[2])
    assert train.labels.tolist() == [0, 0, 1, 1]


def test_one_image_per_file_is_read(cars_folder: Path) -> None:
    """A struct array of one element has no list around it when MATLAB's files are read."""
    write_annotations(
        cars_folder / "devkit" / "cars_test_annos_withlabels.mat", [(1, 1, 9, 9, 1, "00001.jpg")]
    )
    with pytest.raises(DataError, match=f"class {NAMES[1]!r} .*has no test image"):
        open_cars(cars_folder, size=8)


def test_the_labels_may_lie_beside_the_devkit(cars_folder: Path) -> None:
    name = "cars_test_annos_withlabels.mat"
    (cars_folder / "devkit" / name).rename(cars_folder / name)
    assert len(open_cars(cars_folder, size=8).test) == 3
    (cars_folder / name).rename(cars_folder / "devkit" / "cars_test_annos.mat")
    with pytest.raises(DataError, match=r"withlabels\.mat: missing; .* has no classes"):
        open_cars(cars_folder, size=8)


@pytest.mark.parametrize("file", ["cars_meta.mat", "cars_train_annos.mat"])
def test_missing_and_damaged_files(cars_folder: Path, file: str) -> None:
    path = cars_folder / "devkit" / file
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=f"{file}: not a readable MATLAB file"):
        open_cars(cars_folder, size=8)
    savemat(path, {"something": 1})
    with pytest.raises(DataError, match=f"{file}: expected the variable"):
        open_cars(cars_folder, size=8)
    path.unlink()
    with pytest.raises(DataError, match=f"{file}: missing; the Stanford Cars"):
        open_cars(cars_folder, size=8)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((1, 1, 9, 9, 4, "00001.jpg"), "annotation 1: class 4, but cars_meta.mat names 1 … 3"),
        ((1, 1, 9, 9, "x", "00001.jpg"), "annotation 1: expected the fields"),
        ((1, 1, 9, "", 1, "00001.jpg"), "annotation 1: expected the fields"),
        ((1, 1, float("nan"), 9, 1, "00001.jpg"), "annos.mat, annotation 1: expected the fields"),
        ((1, float("inf"), 9, 9, 1, "00001.jpg"), "annos.mat, annotation 1: expected the fields"),
        ((1, 1, 9, 9, 1, "77777.jpg"), "77777.jpg: no such file, but annotation 1"),
    ],
)
def test_wrong_annotations_are_named(
    cars_folder: Path, row: tuple[object, ...], message: str
) -> None:
    write_annotations(cars_folder / "devkit" / "cars_train_annos.mat", [row, row])
    with pytest.raises(DataError, match=message):
        open_cars(cars_folder, size=8)


def test_missing_folders(tmp_path: Path, cars_folder: Path) -> None:
    with pytest.raises(DataError, match="no such folder; expected the Stanford Cars"):
        open_cars(tmp_path / "nowhere", size=8)
    for image in (cars_folder / "cars_test").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="cars_test: the folder is empty"):
        open_cars(cars_folder, size=8)
