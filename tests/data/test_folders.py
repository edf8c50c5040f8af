import os
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protofast.data import Splits, check_leaks, open_folders
from protofast.data.groups import split_groups
from protofast.data.image_set import FileEntry
from protofast.errors import DataError

Write = Callable[..., Path]


def fill(root: Path, write: Write, counts: dict[str, int], suffix: str = ".png") -> Path:
    for name, count in counts.items():
        for number in range(count):
            seed = zlib.crc32(f"{root.name}/{name}/{number}".encode())
            write(root / name / f"{number:02d}{suffix}", seed)
    return root


@pytest.fixture
def classes_folder(tmp_path: Path, write_picture: Write) -> Path:
    return fill(tmp_path / "data", write_picture, {"cat": 10, "dog": 20, "emu": 5})


def write_csv(file: Path, rows: list[tuple[str, ...]], separator: str = ",") -> Path:
    file.write_text("\n".join(separator.join(row) for row in rows) + "\n")
    return file


def patients(root: Path, per_patient: int = 2) -> list[tuple[str, ...]]:
    """Rows of a CSV file: consecutive images of a class are one patient's."""
    rows: list[tuple[str, ...]] = [("path", "group")]
    for folder in sorted(root.iterdir()):
        for number, file in enumerate(sorted(folder.iterdir())):
            rows.append((f"{folder.name}/{file.name}", f"{folder.name}-{number // per_patient}"))
    return rows


def shares(splits: Splits) -> list[float]:
    counts = [torch.bincount(side.labels, minlength=3) for side in (splits.train, splits.test)]
    return (counts[1] / (counts[0] + counts[1])).tolist()


def test_a_stratified_split(classes_folder: Path) -> None:
    splits = open_folders(classes_folder, size=8, test_fraction=0.2)
    train, project, test = splits
    assert project is train
    assert train.classes == test.classes == ("cat", "dog", "emu")
    assert shares(splits) == pytest.approx([0.2, 0.2, 0.2])
    assert not set(train.names) & set(test.names)
    assert len(train) + len(test) == 35
    assert train.names[0].startswith("cat/")
    assert "20.0% test images" in test.description
    assert check_leaks(train, test) == []


def test_the_split_depends_on_the_seed_alone(classes_folder: Path) -> None:
    def tested(seed: int) -> list[str]:
        return open_folders(classes_folder, size=8, seed=seed).test.names

    assert tested(0) == tested(0)
    assert len({tuple(tested(seed)) for seed in range(5)}) == 5


def test_small_classes_are_on_both_sides(tmp_path: Path, write_picture: Write) -> None:
    root = fill(tmp_path, write_picture, {"a": 2, "b": 3})
    splits = open_folders(root, size=8, test_fraction=0.01)
    assert torch.bincount(splits.test.labels).tolist() == [1, 1]
    splits = open_folders(root, size=8, test_fraction=0.99)
    assert torch.bincount(splits.train.labels).tolist() == [1, 1]
    fill(tmp_path, write_picture, {"c": 1})
    with pytest.raises(DataError, match="class 'c' has one image"):
        open_folders(root, size=8)


def test_train_and_test_folders(tmp_path: Path, write_picture: Write) -> None:
    fill(tmp_path / "train", write_picture, {"a": 3, "b": 2})
    fill(tmp_path / "test", write_picture, {"a": 1, "b": 2})
    inside = open_folders(tmp_path, size=8)
    assert inside.train.names[0] == "train/a/00.png"
    assert inside.test.labels.tolist() == [0, 1, 1]
    assert "split as in the folders" in inside.train.description
    given_both = open_folders(tmp_path / "train", tmp_path / "test", size=8)
    assert given_both.train.names[0] == "a/00.png"
    assert torch.equal(given_both.test[2].image, inside.test[2].image)


def test_test_classes_must_be_known(tmp_path: Path, write_picture: Write) -> None:
    fill(tmp_path / "train", write_picture, {"a": 1, "b": 1})
    fill(tmp_path / "test", write_picture, {"a": 1})
    with pytest.warns(UserWarning, match="class 'b' has no test image"):
        open_folders(tmp_path, size=8)
    fill(tmp_path / "test", write_picture, {"z": 1})
    with pytest.raises(DataError, match="z: a class that the training images do not have"):
        open_folders(tmp_path, size=8)


def test_nested_folders_odd_names_and_other_files(tmp_path: Path, write_picture: Write) -> None:
    write_picture(tmp_path / "ä b" / "deep" / "er" / "Bild 1.PNG", 1)
    write_picture(tmp_path / "ä b" / "x.jpeg", 2)
    write_picture(tmp_path / "c" / "1.tif", 3)
    write_picture(tmp_path / "c" / "2.bmp", 4)
    write_picture(tmp_path / ".hidden" / "1.png", 5)
    write_picture(tmp_path / "__MACOSX" / "1.png", 6)
    write_picture(tmp_path / "c" / ".thumbnails" / "1.png", 7)
    write_picture(tmp_path / "c" / "__MACOSX" / "2.bmp", 8)
    (tmp_path / "c" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "c" / "._1.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    os.symlink(tmp_path / "c", tmp_path / "c" / "loop")
    train, _, test = open_folders(tmp_path, size=8, test_fraction=0.5)
    assert sorted(train.names + test.names) == [
        "c/1.tif",
        "c/2.bmp",
        "ä b/deep/er/Bild 1.PNG",
        "ä b/x.jpeg",
    ]
    assert train.classes == ("c", "ä b")
    train.cached()
    test.cached()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "nowhere: no such folder"),
        (lambda root: root.mkdir(), "the folder is empty; expected one folder of images"),
        (lambda root: root.write_text("x"), "not a folder"),
        (lambda root: (root / "a").mkdir(parents=True), "only one class folder"),
        (
            lambda root: [(root / name).mkdir(parents=True) for name in "ab"],
            "a: no image files in this class folder; expected files that end with",
        ),
        (
            lambda root: [(root / name).mkdir(parents=True) for name in ("train", "val")],
            "holds train, val; expected train/ and test/",
        ),
    ],
)
def test_wrong_layouts_are_named(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "nowhere")
    with pytest.raises(DataError, match=message) as caught:
        open_folders(tmp_path / "nowhere", size=8)
    assert "\n" not in str(caught.value)


def test_files_without_folders(tmp_path: Path, write_picture: Write) -> None:
    write_picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="has no folders in it"):
        open_folders(tmp_path, size=8)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "scan.dcm").write_bytes(b"x")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"no image files .*\(but scan\.dcm\)"):
        open_folders(tmp_path, size=8)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_groups_stay_together(classes_folder: Path, tmp_path: Path, separator: str) -> None:
    table = write_csv(tmp_path / "groups.csv", patients(classes_folder), separator)
    splits = open_folders(classes_folder, size=8, groups=table, test_fraction=0.2)
    train, _, test = splits
    assert train.groups is not None
    assert test.groups is not None
    assert not set(train.groups) & set(test.groups)
    assert shares(splits) == pytest.approx([0.2, 0.2, 0.2], abs=0.21)  # emu has 3 patients
    assert shares(splits)[1] == pytest.approx(0.2)
    assert "18 groups, none on both sides" in test.description
    assert check_leaks(train, test) == []


def test_a_class_of_one_patient(classes_folder: Path, tmp_path: Path) -> None:
    rows = [(path, "p1" if path.startswith("emu") else group)
            for path, group in patients(classes_folder)]  # fmt: skip
    with pytest.raises(
        DataError, match=r"g\.csv: class 'emu' has images of one group only \('p1'\)"
    ):
        open_folders(classes_folder, size=8, groups=write_csv(tmp_path / "g.csv", rows))


def test_the_split_may_stand_in_the_csv(classes_folder: Path, tmp_path: Path) -> None:
    rows: list[tuple[str, ...]] = [("file", "group", "age", "split")]
    for number, (path, group) in enumerate(patients(classes_folder)[1:]):
        rows.append((f"./{path}", group, "40", "Test" if number // 2 % 3 == 0 else "train"))
    table = write_csv(tmp_path / "g.csv", rows)
    test = open_folders(classes_folder, size=8, groups=table).test
    expected = {path[2:] for path, _, _, split in rows[1:] if split == "Test"}
    assert set(test.names) == expected
    assert "split as in g.csv" in test.description
    rows[1] = (*rows[1][:3], "train")  # the other image of this patient is a test image
    with pytest.raises(DataError, match="group 'cat-0' is both in the training and in the test"):
        open_folders(classes_folder, size=8, groups=write_csv(table, rows))


def test_groups_across_given_folders(tmp_path: Path, write_picture: Write) -> None:
    root = tmp_path / "data"
    fill(root / "train", write_picture, {"a": 1, "b": 1})
    fill(root / "test", write_picture, {"a": 1, "b": 1})
    rows = [("path", "group"), ("train/a/00.png", "1"), ("train/b/00.png", "2"),
            ("test/a/00.png", "3"), ("test/b/00.png", "4")]  # fmt: skip
    table = tmp_path / "g.csv"
    assert open_folders(root, size=8, groups=write_csv(table, rows)).test.groups == ["3", "4"]
    rows[3] = ("test/a/00.png", "2")
    with pytest.raises(DataError, match="group '2' is both"):
        open_folders(root, size=8, groups=write_csv(table, rows))


def test_groups_on_both_sides_may_be_allowed(tmp_path: Path, write_picture: Write) -> None:
    for side in ("train", "test"):
        fill(tmp_path / "data" / side, write_picture, {"a": 1, "b": 1})
    rows = [("path", "group"), *((f"{side}/{name}/00.png", name)
            for side in ("train", "test") for name in "ab")]  # fmt: skip
    table = write_csv(tmp_path / "g.csv", rows)
    splits = open_folders(tmp_path / "data", size=8, groups=table, allow_shared_groups=True)
    assert splits.train.groups == splits.test.groups == ["a", "b"]
    with pytest.raises(DataError, match=r"group 'a' is both .*\(2 such groups\)"):
        open_folders(tmp_path / "data", size=8, groups=table)


def test_a_split_that_contradicts_the_folders(tmp_path: Path, write_picture: Write) -> None:
    root = tmp_path / "data"
    for side in ("train", "test"):
        fill(root / side, write_picture, {"a": 1, "b": 1})
    rows = [("path", "group", "split"), ("train/a/00.png", "1", "train"),
            ("train/b/00.png", "2", "train"), ("test/a/00.png", "3", "test"),
            ("test/b/00.png", "4", "test")]  # fmt: skip
    table = tmp_path / "g.csv"
    assert len(open_folders(root, size=8, groups=write_csv(table, rows)).test) == 2
    rows[4] = ("test/b/00.png", "4", "train")
    for roots in ((root, None), (root / "train", root / "test")):
        with pytest.raises(
            DataError, match=r"g\.csv, line 5: .*b/00.png is said to be a train image, but lies in"
        ):
            open_folders(*roots, size=8, groups=write_csv(table, rows))


def test_a_line_fits_one_image_only(tmp_path: Path, write_picture: Write) -> None:
    """A file name that several images have says nothing of any of them."""
    root = fill(tmp_path / "data", write_picture, {"a": 2, "b": 2})
    write_picture(root / "b" / "only.png", 9)
    table = tmp_path / "g.csv"
    rows = [("file", "group"), ("a/00.png", "1"), ("a/01.png", "2"), ("b/00.png", "3"),
            ("01.png", "4"), ("only.png", "5")]  # fmt: skip
    with pytest.raises(
        DataError, match=r"line 5: 01\.png fits several images \(.*b/01\.png is one"
    ):
        open_folders(root, size=8, groups=write_csv(table, rows))
    rows[4] = ("b/01.png", "4")
    splits = open_folders(root, size=8, groups=write_csv(table, rows), test_fraction=0.5)
    groups = dict(zip(splits.train.names, splits.train.groups or [], strict=True))
    groups |= dict(zip(splits.test.names, splits.test.groups or [], strict=True))
    assert groups["b/only.png"] == "5"
    assert groups["b/01.png"] == "4"


def test_a_line_fits_one_side_only(tmp_path: Path, write_picture: Write) -> None:
    for side in ("train", "test"):
        fill(tmp_path / side, write_picture, {"a": 1, "b": 1})
    table, roots = tmp_path / "g.csv", (tmp_path / "train", tmp_path / "test")
    rows = [("path", "group"), ("a/00.png", "1"), ("b/00.png", "2")]
    with pytest.raises(DataError, match=r"line 2: a/00\.png fits several images"):
        open_folders(*roots, size=8, groups=write_csv(table, rows))
    rows = [("path", "group"), ("train/a/00.png", "1"), ("train/b/00.png", "2"),
            ("test/a/00.png", "3"), (f"{tmp_path}/test/b/00.png", "4")]  # fmt: skip
    splits = open_folders(*roots, size=8, groups=write_csv(table, rows))
    assert splits.train.groups == ["1", "2"]
    assert splits.test.groups == ["3", "4"]


def test_folders_that_are_not_used_are_mentioned(tmp_path: Path, write_picture: Write) -> None:
    for side in ("train", "test", "val", ".cache"):
        fill(tmp_path / side, write_picture, {"a": 1, "b": 1})
    with pytest.warns(
        UserWarning, match="images in val are not used, only those in train and test"
    ):
        assert len(open_folders(tmp_path, size=8).test) == 2


def test_folders_that_cannot_be_read_are_named(
    tmp_path: Path, write_picture: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "data", write_picture, {"a": 2, "b": 2})
    write_picture(root / "b" / "locked" / "1.png", 9)
    listed = os.scandir

    def scandir(place: str) -> object:
        if str(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(place))
        return listed(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"b/locked: cannot be read \(Permission denied\)"):
        open_folders(root, size=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"g\.csv, line 1: expected the columns path .* got nothing"),
        ("path,patient\ncat/00.png,1\n", r"line 1: expected the columns .* got path, patient"),
        ("path,group\n", "no lines after the header"),
        ("path,group\ncat/00.png\n", "line 2: expected 2 fields"),
        ("path,group\ncat/00.png,\n", "line 2: the group is empty"),
        ("path,group\n,1\n", "line 2: the path is empty"),
        (
            "path,group,split\ncat/00.png,1,both\n",
            "line 2: split must be train or test, got 'both'",
        ),
        ("path,group\ncat/00.png,1\n\ncat/00.png,1\n", "line 4: cat/00.png is listed twice"),
        ('path,group\n"cat/00.png,1\n', "line .: not a CSV line"),
        ("path,group\ncat/00.png,1\n", "no line for the image cat/01.png"),
    ],
)
def test_malformed_tables_are_named(
    classes_folder: Path, tmp_path: Path, text: str, message: str
) -> None:
    table = tmp_path / "g.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        open_folders(classes_folder, size=8, groups=table)


def test_a_missing_table(classes_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"g\.csv: missing; expected a CSV file"):
        open_folders(classes_folder, size=8, groups=tmp_path / "g.csv")
    with pytest.raises(ValueError, match="test_fraction must be between 0 and 1"):
        open_folders(classes_folder, size=8, test_fraction=1.0)


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=16, max_size=60),
    seed=st.integers(0, 2**32),
    fraction=st.sampled_from([0.1, 0.2, 0.3, 0.5]),
)
def test_group_splits_are_valid_and_balanced(
    labels: list[list[int]], seed: int, fraction: float
) -> None:
    entries = [
        FileEntry(Path(f"{g}-{k}.png"), f"{g}-{k}", label, None, f"group {g}")
        for g, group in enumerate(labels)
        for k, label in enumerate(group)
    ]
    # Every class in at least eight groups of its own, so that a balanced split exists.
    entries += [
        FileEntry(Path("x.png"), f"own-{label}-{k}", label, None, f"own {label} {k}")
        for label in range(4)
        for k in range(8)
    ]
    test = split_groups(entries, list("abcd"), fraction, seed)
    sides: dict[str | None, set[bool]] = {}
    for entry, chosen in zip(entries, test, strict=True):
        sides.setdefault(entry.group, set()).add(chosen)
    assert all(len(chosen) == 1 for chosen in sides.values())
    total = Counter(entry.label for entry in entries)
    tested = Counter(entry.label for entry, chosen in zip(entries, test, strict=True) if chosen)
    for label in range(4):
        assert 0 < tested[label] < total[label]
        assert abs(tested[label] / total[label] - fraction) < 0.12
    assert test == split_groups(entries, list("abcd"), fraction, seed)
