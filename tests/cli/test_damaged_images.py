"""Image files that are damaged: each command that needs them names the file and changes nothing."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Place, command

from protofast.training import RunFolder


def _corrupt(file: Path) -> str:
    file.write_bytes(bytes(range(1, 200)))
    return "not an image that can be read"


def _truncate(file: Path) -> str:
    file.write_bytes(file.read_bytes()[:300])
    return "damaged or truncated"


def _empty(file: Path) -> str:
    file.write_bytes(b"")
    return "the file is empty"


@pytest.mark.parametrize("damage", [_corrupt, _truncate, _empty])
@pytest.mark.parametrize("side", ["train", "test"])
@pytest.mark.usefixtures("unchanged")
def test_an_image_of_the_run(place: Place, damage: Callable[[Path], str], side: str) -> None:
    file = place.photo(side)
    said = damage(file)
    out = place.run.with_name("new")
    readers = [(name, place.run) for name in ("project", "prune", "explain")]
    if side == "test":
        readers.append(("evaluate", place.run))
    for arguments in (("train", place.settings, "--out", out), *readers):
        answer = command(*arguments)
        assert answer.code == 1
        assert answer.error.startswith(f"{file}: ")
        assert said in answer.error
    assert not out.exists()


def test_evaluating_reads_no_training_image(place: Place) -> None:
    _corrupt(place.photo("train"))
    assert "accuracy" in command("evaluate", place.run).done()


def test_an_image_that_is_read_during_training(place: Place) -> None:
    """With images left on the disk, training stops at the file and goes on once it is mended."""
    file = place.photo("train")
    whole = file.read_bytes()
    _truncate(file)
    out = place.run.with_name("new")
    said = command(
        "train", place.settings, "--out", out, "--set", "data.in_memory=false", "--no-report"
    ).error
    assert said.startswith(f"{file}: damaged or truncated")
    assert said.endswith(f"go on with: protofast train --resume {out}")
    file.write_bytes(whole)
    assert "trained in" in command("train", "--resume", out, "--no-report").done()


@pytest.mark.usefixtures("unchanged")
def test_loose_images(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "loose"
    folder.mkdir()
    good = folder / "it's [good].jpg"
    good.write_bytes(place.photo().read_bytes())
    for number, damage in enumerate((_corrupt, _truncate, _empty)):
        bad = folder / f"{number}.jpg"
        bad.write_bytes(place.photo().read_bytes())
        said = damage(bad)
        answer = command("explain", place.run, bad)
        assert answer.code == 1
        assert answer.error.startswith(f"{bad}: ")
        assert said in answer.error
        # The others are explained nevertheless.
        answer = command("explain", place.run, bad, good, "--out", tmp_path / f"figures {number}")
        assert answer.error.startswith(f"{bad}: ")
        assert f"{good} (" in answer.out
        assert (tmp_path / f"figures {number}" / "it's [good]-explained.png").is_file()
    answer = command("explain", place.run, folder / "none.jpg")
    assert answer.error == f"{folder / 'none.jpg'}: no such image file"
    assert (
        command("explain", place.run, folder).error == f"{folder}: is a folder; give an image file"
    )
    answer = command("explain", place.run, good, "--out", good)
    assert "there is a file where a folder is needed" in answer.error
    assert sorted(os.listdir(folder)) == ["0.jpg", "1.jpg", "2.jpg", good.name]


def test_an_image_that_gives_no_finite_logits_is_named(place: Place, tmp_path: Path) -> None:
    run = RunFolder.open(place.run)
    checkpoint, tensors, facts = run.read("best")
    (name,) = (name for name in tensors if name.endswith("last_layer.weight"))
    tensors[name][0, 0] = torch.nan
    run.write(checkpoint, tensors, facts)
    answer = command("explain", place.run, place.photo(), "--out", tmp_path)
    assert answer.code == 1
    assert answer.error.startswith(f"{place.photo()}: the image gives logits that are not finite")
    assert list(tmp_path.glob("*.png")) == []
