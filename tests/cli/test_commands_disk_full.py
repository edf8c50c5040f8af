"""A full disk: one line that says so, and all that was there before is still there and whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import Answer, Place, command
from disk_space import largest_file


@contextmanager
def _filled(disk: Path, *, left: int) -> Iterator[None]:
    """So many bytes are left on the disk."""
    ballast = disk / "ballast"
    space = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - left)
    try:
        yield
    finally:
        ballast.unlink()


def _is_full(answer: Answer) -> bool:
    return "No space left on device; free" in answer.error or "File too large; free" in answer.error


@pytest.mark.parametrize("name", ["evaluate", "project", "prune", "explain", "report"])
def test_commands_on_a_run(place: Place, name: str) -> None:
    before = place.state()
    for size in (0, 200):
        with largest_file(size):
            answer = command(name, place.run)
        assert _is_full(answer)
        assert place.state() == before
    command(name, place.run).done()


@pytest.mark.parametrize("name", ["evaluate", "project", "prune", "explain", "report"])
def test_commands_on_a_disk_that_is_full(place: Place, small_disk: Path, name: str) -> None:
    run = small_disk / "run"
    shutil.copytree(place.run, run)
    there = place._replace(run=run)
    before = there.state()
    with _filled(small_disk, left=0):
        answer = command(name, run)
        assert _is_full(answer)
        assert str(run) in answer.error
        assert there.state() == before
    command(name, run).done()


def test_figures_of_loose_images(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    with largest_file(1000):
        answer = command("explain", place.run, place.photo(), "--out", out)
    assert _is_full(answer)
    assert not list(out.iterdir())


def test_training_on_a_disk_that_is_full(place: Place, small_disk: Path) -> None:
    run = small_disk / "run"
    arguments = ("train", place.settings, "--out", run, "--no-report")
    with _filled(small_disk, left=0):
        assert _is_full(command(*arguments))  # nothing fits
        assert not run.exists()
    with _filled(small_disk, left=10_000_000):  # the first checkpoint fits, the second does not
        answer = command(*arguments)
        assert "No space left on device; free some space, then go on with: " in answer.error
        assert answer.error.endswith(f"protofast train --resume {run}")
        assert [file.name for file in run.rglob("*.safetensors")] == ["warm-0.safetensors"]
        assert not list(run.rglob("*.tmp"))
        assert _is_full(command("train", "--resume", run))
    out = command("train", "--resume", run).done()
    assert "resumed from checkpoint warm-0: 1 of 4 steps are done" in out
    assert (run / "report.html").is_file()
