from pathlib import Path

import pytest
import torch

from protofast.data import Batches, decode_image, open_cub
from protofast.errors import DataError


def test_the_official_split(cub_folder: Path) -> None:
    train, project, test = open_cub(cub_folder, size=(16, 20))
    assert project is train
    assert train.classes == ("001.Finch", "002.Warbler", "003.Shrike")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels.tolist() == [0, 1, 2]
    assert test.names == ["001.Finch/1.jpg", "002.Warbler/1.jpg", "003.Shrike/1.jpg"]
    assert train.size == (16, 20)
    assert train[3].image.shape == (3, 16, 20)
    assert train.file(0) == cub_folder / "images" / "001.Finch" / "0.jpg"


def test_images_are_cropped_to_their_boxes(cub_folder: Path) -> None:
    cropped = open_cub(cub_folder, size=None).train
    whole = open_cub(cub_folder, size=None, crop=False).train
    # Box 4.6 2.0 20.9 16.0: corners cut off to whole pixels, as int() does in the papers' scripts.
    assert torch.equal(cropped[0].image, whole[0].image[:, 2:18, 4:25])
    assert torch.equal(whole[0].image, decode_image(cub_folder / "images/001.Finch/0.jpg"))


@pytest.mark.parametrize("classes", [2, ["003.Shrike", "001.Finch"]])
def test_some_classes(cub_folder: Path, classes: int | list[str]) -> None:
    train, _, test = open_cub(cub_folder, size=8, classes=classes)
    expected = ("001.Finch", "002.Warbler") if classes == 2 else ("001.Finch", "003.Shrike")
    assert train.classes == test.classes == expected
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert {name.split("/")[0] for name in train.names} == set(expected)


def test_one_channel(cub_folder: Path) -> None:
    train = open_cub(cub_folder, size=8, channels=1).train
    assert next(iter(Batches(train, 4))).images.shape == (4, 1, 8, 8)


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("file", ["image_class_labels.txt", "train_test_split.txt"])
def test_an_image_that_only_another_file_lists(cub_folder: Path, file: str) -> None:
    with (cub_folder / file).open("a") as stream:
        stream.write("10 1\n")
    with pytest.raises(
        DataError, match=rf"images\.txt: no line for image 10 of {file}; .*cut short"
    ):
        open_cub(cub_folder, size=8)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("images.txt", "5 002.Warbler/1.jpg", "five 002.Warbler/1.jpg", r"images\.txt, line 5"),
        ("images.txt", "5 002.Warbler/1.jpg", "5", r"images\.txt, line 5: expected '<image id>"),
        ("images.txt", "5 002.Warbler/1.jpg", "4 002.Warbler/1.jpg", r"line 5: 4 is listed twice"),
        ("images.txt", "Warbler/1.jpg", "Warbler/9.jpg", r"9\.jpg: no such file, but images\.txt"),
        (
            "images.txt",
            "9 003.Shrike/2.jpg\n",
            "",
            r"images\.txt: no line for image 9 of image_cl.*cut",
        ),
        ("images.txt", "Finch/1.jpg", "Finch/0.jpg", r"images\.txt: images 1 and 2 are both 001"),
        ("image_class_labels.txt", "9 3\n", "", r"labels\.txt: no line for image 9.*cut short"),
        ("bounding_boxes.txt", "\n9 ", "\n10 ", r"boxes\.txt: no line for image 9.*cut short"),
        ("image_class_labels.txt", "5 2", "5 x", r"image_class_labels\.txt, line 5"),
        ("image_class_labels.txt", "5 2", "5 7", "image 5 has class 7, which classes.txt does not"),
        ("image_class_labels.txt", "5 2\n", "", r"no line for image 5 \(002\.Warbler/1\.jpg\)"),
        ("train_test_split.txt", "5 0", "5 2", r"train_test_split\.txt, line 5"),
        ("train_test_split.txt", "5 0", "5 1", "class '002.Warbler' has no test image"),
        ("bounding_boxes.txt", "5 4.6 2.0 20.9", "5 4.6 2.0", r"bounding_boxes\.txt, line 5"),
        ("bounding_boxes.txt", "5 4.6 2.0 20.9", "5 4.6 2.0 -3", r"bounding_boxes\.txt, line 5"),
        ("bounding_boxes.txt", "5 4.6", "5 nan", r"bounding_boxes\.txt, line 5"),
        ("bounding_boxes.txt", "5 4.6 2.0", "5 4.6 -inf", r"bounding_boxes\.txt, line 5"),
        ("bounding_boxes.txt", "5 4.6 2.0 20.9", "5 4.6 2.0 inf", r"bounding_boxes\.txt, line 5"),
        ("bounding_boxes.txt", "5 4.6", "5 nan?", r"bounding_boxes\.txt, line 5"),
        ("classes.txt", "2 002.Warbler\n", "", "has class 2, which classes.txt does not list"),
    ],
)
def test_malformed_lines_are_named(
    cub_folder: Path, file: str, old: str, new: str, message: str
) -> None:
    rewrite(cub_folder / file, old, new)
    with pytest.raises(DataError, match=message) as caught:
        open_cub(cub_folder, size=8)
    assert "\n" not in str(caught.value)


def test_classes_without_training_images(cub_folder: Path) -> None:
    rewrite(cub_folder / "train_test_split.txt", "1 1", "1 0")
    rewrite(cub_folder / "train_test_split.txt", "3 1", "3 0")
    with pytest.raises(DataError, match=r"class '001\.Finch' has no training image"):
        open_cub(cub_folder, size=8)
    assert len(open_cub(cub_folder, size=8, classes=["002.Warbler", "003.Shrike"]).train) == 4


@pytest.mark.parametrize(
    "file",
    [
        "images.txt",
        "classes.txt",
        "image_class_labels.txt",
        "train_test_split.txt",
        "bounding_boxes.txt",
    ],
)
def test_missing_and_broken_index_files(cub_folder: Path, file: str) -> None:
    (cub_folder / file).write_bytes(b"\xff\xfe\x00binary\x80")
    with pytest.raises(DataError, match=f"{file}: not a text file"):
        open_cub(cub_folder, size=8)
    (cub_folder / file).write_text("\n\n")
    with pytest.raises(DataError, match=f"{file}: no lines; expected"):
        open_cub(cub_folder, size=8)
    (cub_folder / file).unlink()
    with pytest.raises(DataError, match=f"{file}: missing; expected lines of the form"):
        open_cub(cub_folder, size=8)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; expected the CUB-200-2011"):
        open_cub(tmp_path / "nowhere", size=8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder is empty; expected the CUB-200-2011"):
        open_cub(tmp_path / "empty", size=8)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="not a folder"):
        open_cub(tmp_path / "file", size=8)


def test_wrong_classes_are_named(cub_folder: Path) -> None:
    with pytest.raises(DataError, match=r"has no class 'Eagle'; its classes are 001.Finch"):
        open_cub(cub_folder, size=8, classes=["Eagle", "001.Finch"])
    with pytest.raises(DataError, match="has 3 classes, 9 were asked for"):
        open_cub(cub_folder, size=8, classes=9)
    with pytest.raises(DataError, match="at least two classes"):
        open_cub(cub_folder, size=8, classes=1)


def test_a_box_outside_its_image(cub_folder: Path) -> None:
    rewrite(cub_folder / "bounding_boxes.txt", "1 4.6 2.0", "1 400 2.0")
    train = open_cub(cub_folder, size=8).train
    with pytest.raises(DataError, match=r"0\.jpg: its bounding box .* has no pixel inside"):
        train.image(0)


def test_the_shared_photographs(shared_data: Path) -> None:
    folder = shared_data / "cub80"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/cub80")
    train, _, test = open_cub(folder, size=112)
    assert (len(train), len(test), len(train.classes)) == (2399, 2332, 80)
    assert train.classes[0] == "001.American_Goldfinch"
    assert torch.bincount(train.labels).min() > 0
    # Their boxes are the whole images, so cropping changes nothing.
    whole = open_cub(folder, size=112, crop=False)
    assert torch.equal(whole.test[5].image, test[5].image)
    batch = next(iter(Batches(train, 16, workers=2)))
    assert batch.images.shape == (16, 3, 112, 112)
    assert 0.2 < batch.images.mean() < 0.8
