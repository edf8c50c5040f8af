import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from protofast.data import FileImageSet, check_leaks, open_cub
from protofast.data.image_set import FileEntry
from protofast.errors import DataError

Write = Callable[..., Path]


def image_set(files: list[Path], groups: list[str] | None = None) -> FileImageSet:
    entries = [
        FileEntry(file, f"{file.parent.name}/{file.name}", 0, None, groups and groups[k])
        for k, file in enumerate(files)
    ]
    return FileImageSet(entries, classes=("a",), size=(8, 8))


@pytest.fixture
def sides(tmp_path: Path, write_picture: Write) -> tuple[list[Path], list[Path]]:
    """Five training and five test images, all different."""
    return tuple(
        [write_picture(tmp_path / side / f"{k}.png", first + k) for k in range(5)]
        for side, first in (("train", 0), ("test", 10))
    )  # type: ignore[return-value]


def test_nothing_to_report(sides: tuple[list[Path], list[Path]]) -> None:
    train, test = (image_set(files) for files in sides)
    assert check_leaks(train, test) == []
    assert check_leaks(train, test, pixels=True) == []
    assert check_leaks(train.cached(), test.cached()) == []


def test_the_same_file(sides: tuple[list[Path], list[Path]]) -> None:
    link = sides[1][0].parent / "link.png"
    link.symlink_to(sides[0][3])
    train, test = image_set(sides[0]), image_set([*sides[1], link])
    with pytest.raises(DataError, match=r"'test/link\.png' is the same file as .*'train/3\.png'"):
        check_leaks(train, test)
    (leak,) = check_leaks(train, test, allow=("file",))
    assert (leak.kind, leak.train, leak.test) == ("file", "train/3.png", "test/link.png")


def test_the_same_bytes_under_another_name(sides: tuple[list[Path], list[Path]]) -> None:
    for number in (1, 2):
        shutil.copy(sides[0][number], sides[1][number])
    train, test = (image_set(files) for files in sides)
    with pytest.raises(DataError, match=r"has the same content as .* and 1 more like it") as error:
        check_leaks(train, test)
    assert "allow=('bytes',)" in str(error.value)
    leaks = check_leaks(train, test, allow=("bytes",))
    assert [(leak.train, leak.test) for leak in leaks] == [
        ("train/1.png", "test/1.png"),
        ("train/2.png", "test/2.png"),
    ]


def test_files_of_equal_size_are_not_confused(tmp_path: Path) -> None:
    files = []
    for number in range(4):
        file = tmp_path / f"{number % 2}" / f"{number}.bmp"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(file)
        files.append(file)
    assert len({file.stat().st_size for file in files}) == 1
    assert check_leaks(image_set(files[::2]), image_set(files[1::2])) == []


def test_the_same_picture_saved_twice(sides: tuple[list[Path], list[Path]]) -> None:
    Image.open(sides[0][4]).save(sides[1][0], compress_level=0)
    train, test = (image_set(files) for files in sides)
    assert check_leaks(train, test) == []  # files only, unless asked
    with pytest.raises(DataError, match="shows the same pixels as"):
        check_leaks(train, test, pixels=True)
    with pytest.raises(DataError, match=r"'test/0\.png' shows the same pixels as .*'train/4\.png'"):
        check_leaks(train.cached(), test.cached())
    assert check_leaks(train.cached(), test.cached(), pixels=False) == []


def test_a_group_on_both_sides(sides: tuple[list[Path], list[Path]]) -> None:
    train = image_set(sides[0], ["p1", "p1", "p2", "p3", "p3"])
    test = image_set(sides[1], ["p4", "p3", "p3", "p1", "p5"])
    with pytest.raises(DataError, match=r"is of the same group as .*'p3'\) and 1 more") as error:
        check_leaks(train, test)
    assert "\n" not in str(error.value)
    leaks = check_leaks(train, test, allow=("group",))
    assert [(leak.detail, leak.train, leak.test) for leak in leaks] == [
        ("p3", "train/3.png", "test/1.png"),
        ("p1", "train/0.png", "test/3.png"),
    ]


def test_several_kinds_in_one_message(sides: tuple[list[Path], list[Path]]) -> None:
    shutil.copy(sides[0][0], sides[1][0])
    train = image_set(sides[0], ["a"] * 5)
    test = image_set(sides[1], ["a"] * 5)
    with pytest.raises(DataError, match=r"same content .*; .* same group") as error:
        check_leaks(train, test)
    assert "allow=('bytes', 'group')" in str(error.value)
    with pytest.raises(DataError, match="same group"):
        check_leaks(train, test, allow=("bytes",))
    with pytest.raises(ValueError, match=r"allow may hold .* got 'everything'"):
        check_leaks(train, test, allow=("everything",))  # type: ignore[arg-type]


def test_a_file_that_went_away(sides: tuple[list[Path], list[Path]]) -> None:
    train, test = (image_set(files) for files in sides)
    sides[1][2].unlink()
    with pytest.raises(DataError, match=r"2\.png: cannot be read"):
        check_leaks(train, test)


def test_subsets_are_followed_to_their_files(sides: tuple[list[Path], list[Path]]) -> None:
    whole = image_set(sides[0]).cached()
    with pytest.raises(DataError, match="same file"):
        check_leaks(whole.subset(torch.arange(3)), whole.subset([2, 4]))
    assert check_leaks(whole.subset([0, 1]), whole.subset([2, 4])) == []


def test_the_shared_photographs(shared_data: Path) -> None:
    folder = shared_data / "cub80"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/cub80")
    train, _, test = open_cub(folder, size=112)
    leaks = check_leaks(train, test, allow=("bytes",))
    assert all(leak.kind == "bytes" for leak in leaks)
