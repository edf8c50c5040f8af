"""A full disk stops a run with one line, and nothing that was written before is lost."""

import errno
import json
import subprocess
from pathlib import Path

import pytest
from disk_space import largest_file
from small_runs import Tiny, assert_same_end

from protofast.data import Splits
from protofast.training import Result, RunFolder, train


def _assert_intact_and_resumable(
    folder: RunFolder, done: Result, birds: Splits, latest: str
) -> None:
    assert folder.pointer("latest") == latest
    assert latest in folder.names()
    folder.load_model("latest")
    assert [row["step"] for row in folder.rows()] == sorted(row["step"] for row in folder.rows())
    result = train(None, folder.path, resume=True, data=birds)
    assert result.finished
    assert_same_end(done.folder, folder)


def test_a_checkpoint_that_does_not_fit(
    tiny: Tiny, birds: Splits, done: Result, tmp_path: Path
) -> None:
    # The joint stage's checkpoint holds Adam's moments of the backbone too.
    sizes = [
        (done.folder.checkpoints / f"{name}.safetensors").stat().st_size
        for name in ("warm-0", "joint-2")
    ]
    assert sizes[0] * 2 < sizes[1]
    with largest_file(sizes[0] * 2), pytest.raises(OSError, match="File too large") as caught:
        train(tiny(), tmp_path / "run", data=birds)
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value.filename).endswith("joint-1.safetensors")
    folder = RunFolder.open(tmp_path / "run")
    assert not list(folder.path.rglob("*.tmp")), "the half-written file is gone"
    _assert_intact_and_resumable(folder, done, birds, "warm-0")


def test_numbers_that_do_not_fit(
    tiny: Tiny,
    birds: Splits,
    done: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "run"
    lines = done.folder.metrics.read_bytes().splitlines(keepends=True)
    first = len(b"".join(line for line in lines if json.loads(line)["step"] < 2))
    original = RunFolder.append_metrics

    def limited(folder: RunFolder, rows: list[dict[str, object]]) -> None:
        # Enough for some lines; the checkpoints, which are larger, must not be in the way.
        with largest_file(first + 40):
            original(folder, rows)

    monkeypatch.setattr(RunFolder, "append_metrics", limited)
    with pytest.raises(OSError, match="File too large") as caught:
        train(tiny(), path, data=birds)
    monkeypatch.undo()
    assert str(caught.value.filename).endswith("metrics.jsonl")
    folder = RunFolder.open(path)
    latest = folder.pointer("latest")
    assert latest == "joint-1"
    _assert_intact_and_resumable(folder, done, birds, latest)


def test_a_file_system_that_is_really_full(
    tiny: Tiny, birds: Splits, done: Result, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs; the tests above limit the size of files")
    try:
        with pytest.raises(OSError, match="No space left on device") as caught:
            train(tiny(), disk / "run", data=birds)
        assert caught.value.errno == errno.ENOSPC
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        folder = RunFolder.open(disk / "run")
        latest = folder.pointer("latest")
        assert latest is not None
        _assert_intact_and_resumable(folder, done, birds, latest)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
