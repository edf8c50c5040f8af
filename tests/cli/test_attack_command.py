"""`protofast attack`: what it prints and writes, and what it refuses in one line."""

import os
from pathlib import Path

import pytest
from commands import Place, command
from PIL import Image


@pytest.mark.usefixtures("unchanged")
def test_an_attack_prints_a_table_and_draws_a_figure(place: Place, here: Path) -> None:
    photo = place.photo("test")
    arguments = ("attack", place.run, photo, "--prototype", 3, "--target", "1,0", "--steps", 3)
    said = command(*arguments).done().splitlines()
    assert said[0].startswith(f"{photo} (")
    assert "): prototype 3 of " in said[0]
    assert said[1].split() == ["clean", "attacked"]
    labels = ("most similar at", "similarity there", "in the target", "where it was")
    for line, label in zip(said[2:], (*labels, "rank of the prototype", "class"), strict=False):
        assert line.startswith(label)
    before, after = (float(number) for number in said[4].split()[-2:])  # in the target
    assert after > before
    assert said[8].startswith("the prototype has ")
    assert said[-1] == f"figure: {photo.stem}-attacked.png"
    with Image.open(here / f"{photo.stem}-attacked.png") as figure:
        assert figure.width > 1500
    again = command(*arguments).done().splitlines()
    assert again[:-1] == said[:-1]
    assert again[-1] == f"figure: {photo.stem}-attacked-2.png"
    first, second = (here / name for name in sorted(os.listdir(here)))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.usefixtures("here")
def test_without_options_the_strongest_prototype_is_attacked(place: Place) -> None:
    said = command("attack", place.run, place.photo("test"), "--steps", 1).done()
    assert "rank of the prototype" in said
    rank = next(line for line in said.splitlines() if line.startswith("rank"))
    assert rank.split()[-2] == "1"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--target", "there"), 2, "--target there: must be ROW,COL, such as 3,4, or"),
        (("--target", "9" * 5000 + ",0"), 2, "9,0: must be ROW,COL"),
        (("--target", "1;1"), 2, "--target 1;1: must be ROW,COL"),
        (("--target", "-1,0"), 2, "--target -1,0: must be ROW,COL"),
        (("--target", "1-0,1"), 2, "--target 1-0,1: a range begins with its smaller end"),
        (("--target", "0,0", "--target", "2,1"), 2, "cell (2, 1) is not on the grid of 2 rows"),
        (("--target", "0,0-99999999999"), 2, "cell (0, 99999999999) is not on the grid of 2 rows"),
        (("--prototype", "6"), 2, "--prototype 6: the model has prototypes 0 to 5"),
        (("--prototype", "-1"), 2, "--prototype -1: the model has prototypes 0 to 5"),
    ],
)
def test_options_that_fit_no_cell_or_prototype(
    place: Place, here: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    answer = command("attack", place.run, place.photo(), *options)
    assert (answer.code, answer.out) == (code, "")
    assert message in answer.error
    assert os.listdir(here) == []


def test_images_that_cannot_be_read(place: Place, here: Path) -> None:
    broken = here / "broken.jpg"
    broken.write_bytes(place.photo().read_bytes()[:300])
    for file in (broken, here / "missing.png"):
        answer = command("attack", place.run, file)
        assert answer.code == 1
        assert str(file) in answer.error
    assert os.listdir(here) == ["broken.jpg"]


def test_no_figure_among_the_images(place: Place) -> None:
    before = sorted(place.photos.rglob("*"))
    answer = command("attack", place.run, place.photo(), "--out", place.photos / "test")
    assert answer.code == 2
    assert "where figures would be taken for images" in answer.error
    assert sorted(place.photos.rglob("*")) == before


@pytest.mark.parametrize("options", [("--epsilon", "inf"), ("--step-size", "256")])
def test_noise_that_no_image_can_hold(place: Place, here: Path, options: tuple[str, str]) -> None:
    answer = command("attack", place.run, place.photo(), *options)
    assert (answer.code, answer.out) == (2, "")
    assert options[0] in answer.err
    assert "255" in answer.err
    assert list(here.iterdir()) == []
