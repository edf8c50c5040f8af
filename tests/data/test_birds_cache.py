import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from protofast.data import BirdSet, open_birds
from protofast.data.birds import cache

SMALL = {"classes": 2, "train_per_class": 2, "test_per_class": 1, "size": 32}
CODE = (
    "from protofast.data import open_birds; "
    "open_birds(classes=4, train_per_class=6, test_per_class=2, size=48, cache={folder!r})"
)


def rendered(folder: Path) -> int:
    """How many images are rendered to open the small data set."""
    told: list[int] = []
    open_birds(**SMALL, cache=folder, progress=lambda done, total: told.append(done))
    return len(told)


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_the_second_time_comes_from_the_cache(tmp_path: Path) -> None:
    first = open_birds(**SMALL, cache=False)
    assert rendered(tmp_path) == 6
    assert rendered(tmp_path) == 0
    second = open_birds(**SMALL, cache=tmp_path)
    assert isinstance(first.train, BirdSet)
    assert isinstance(second.train, BirdSet)
    for name in ("pixels", "parts", "boxes"):
        assert torch.equal(getattr(first.train, name), getattr(second.train, name))
        assert torch.equal(getattr(first.test, name), getattr(second.test, name))
    # What a caller does to the images stays in his process.
    second.train.pixels.zero_()
    third = open_birds(**SMALL, cache=tmp_path)
    assert torch.equal(third.train.pixels, first.train.pixels)  # type: ignore[attr-defined]
    open_birds(**{**SMALL, "seed": 1}, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer", "empty", "header", "text"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    good = open_birds(**SMALL, cache=tmp_path)
    file = only_file(tmp_path)
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[-1000] ^= 1
    elif damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "longer":
        data += b"x"
    elif damage == "empty":
        data = bytearray()
    elif damage == "header":
        data[30] ^= 255
    else:
        data = bytearray(b"not a cache file at all")
    file.write_bytes(data)
    assert rendered(tmp_path) == 6
    assert rendered(tmp_path) == 0
    again = open_birds(**SMALL, cache=tmp_path)
    assert torch.equal(again.train.pixels, good.train.pixels)  # type: ignore[attr-defined]
    assert only_file(tmp_path) == file


def test_a_file_of_another_version_is_made_again(tmp_path: Path) -> None:
    assert rendered(tmp_path) == 6
    file = only_file(tmp_path)
    data = file.read_bytes()
    assert data.count(b"Pillow ") == 1
    file.write_bytes(data.replace(b"Pillow ", b"Pixels "))
    assert rendered(tmp_path) == 6
    assert rendered(tmp_path) == 0


def test_processes_that_race_all_succeed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-W", "ignore::UserWarning:protofast", "-c",
             CODE.format(folder=str(folder))],
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    file = only_file(folder)
    assert file.stat().st_size > 4 * 8 * 3 * 48 * 48


def test_a_folder_that_cannot_be_written_costs_only_a_warning(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("here is no folder")
    with pytest.warns(UserWarning, match=r"could not be kept in .*PROTOFAST_CACHE"):
        birds = open_birds(**SMALL, cache=blocked / "cache")
    assert len(birds.train) == 4


def test_a_full_disk_costs_only_a_warning(tmp_path: Path) -> None:
    """A limit on the size of files fails in the middle of writing, as a full disk does."""
    code = (
        "import resource, warnings\n"
        "from protofast.data import open_birds\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    open_birds(classes=2, train_per_class=2, test_per_class=1, size=32, "
        f"cache={str(tmp_path)!r})\n"
        "assert any('could not be kept' in str(one.message) for one in caught), caught\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOFAST_CACHE", str(tmp_path / "mine"))
    assert cache.default_folder() == tmp_path / "mine"
    open_birds(**SMALL)
    assert only_file(tmp_path / "mine").suffix == ".bin"
    monkeypatch.delenv("PROTOFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert cache.default_folder() == tmp_path / "protofast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.default_folder().is_absolute()


def test_no_cache_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOFAST_CACHE", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_birds(**SMALL, cache=False)
    assert os.listdir(tmp_path) == []
