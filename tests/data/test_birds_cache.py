import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
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


def test_any_flipped_bit_of_the_header_is_noticed(tmp_path: Path) -> None:
    """A header that still reads as JSON may name other arrays or another place of the pixels."""
    file = tmp_path / "birds-0.bin"
    array = np.arange(64, dtype=np.uint8).reshape(4, 16)
    cache.save(file, "key", {"pixels": array})
    data = file.read_bytes()
    found = cache.load(file, "key")
    assert found is not None
    assert np.array_equal(found["pixels"], array)
    (length,) = struct.unpack_from("<I", data, 8)
    for bit in range(8 * (16 + length)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        assert cache.load(file, "key") is None, bit


def test_a_file_of_another_version_is_made_again(tmp_path: Path) -> None:
    assert rendered(tmp_path) == 6
    file = only_file(tmp_path)
    data = file.read_bytes()
    (length,) = struct.unpack_from("<I", data, 8)
    header = data[16 : 16 + length]
    assert header.count(b"Pillow ") == 1
    other = header.replace(b"Pillow ", b"Pixels ")
    start = data[:12] + struct.pack("<I", zlib.crc32(other)) + other
    file.write_bytes(start + data[len(start) :])
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


def test_other_users_may_read_a_shared_cache(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        open_birds(**SMALL, cache=tmp_path)
    finally:
        os.umask(before)
    assert only_file(tmp_path).stat().st_mode & 0o777 == 0o644


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_birds(**SMALL, cache=tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    old, young = tmp_path / "birds-0.bin1234.part", tmp_path / "birds-0.bin.5678.part"
    for left in (old, young):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    open_birds(**SMALL, cache=tmp_path)
    assert not old.exists()
    assert young.exists()  # another process may be writing it


def test_a_user_without_a_home_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: str) -> str:
        return path  # what os.path.expanduser answers where there is none

    for name in ("PROTOFAST_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", no_home)
    with pytest.warns(UserWarning, match="has no home folder.*set PROTOFAST_CACHE"):
        birds = open_birds(**SMALL)
    assert len(birds.train) == 4


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
    default = cache.default_folder()
    assert default is not None
    assert default.is_absolute()


def test_no_cache_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOFAST_CACHE", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_birds(**SMALL, cache=False)
    assert os.listdir(tmp_path) == []
