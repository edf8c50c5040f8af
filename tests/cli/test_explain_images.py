"""`protofast explain RUN IMAGE`: what it prints, and where its figures go."""

import os
import re
from pathlib import Path

import pytest
from commands import Place, command

from protofast.data import open_folders


@pytest.mark.usefixtures("unchanged")
def test_figures_go_to_the_current_folder(place: Place, here: Path) -> None:
    """A figure beside its image would be an image of that class from then on."""
    before = open_folders(place.photos, size=8)
    photo = place.photo()
    said = command("explain", place.run, photo).done()
    assert said.splitlines()[-1] == f"figure: {photo.stem}-explained.png"
    assert os.listdir(here) == [f"{photo.stem}-explained.png"]
    after = open_folders(place.photos, size=8)
    assert (after.train.names, after.test.names) == (before.train.names, before.test.names)


@pytest.mark.parametrize("side", ["train", "test"])
def test_figures_among_the_images_are_refused(place: Place, here: Path, side: str) -> None:
    settings = place.run / "settings.toml"
    apart = f'root = "{place.photos}/train"\ntest_root = "{place.photos}/test"'
    text = settings.read_text()
    settings.write_text(text.replace(f'root = "{place.photos}"', apart))
    (here / "link").symlink_to(place.photos / side / "crow")
    (place.photos / side / "booby & tern").rename(here / "elsewhere")
    (place.photos / side / "booby & tern").symlink_to(here / "elsewhere")
    files = sorted(place.photos.rglob("*"))
    for out in (
        place.photos / side,
        place.photos / side / "crow" / "new",
        "link",
        here / "elsewhere",
    ):
        answer = command("explain", place.run, place.photo(), "--out", out)
        assert answer.code == 2
        key = "data.root" if side == "train" else "data.test_root"
        assert f"({key} = {place.photos / side}), where figures would be taken" in answer.error
        assert answer.error.endswith("say with --out where else to put them")
    assert sorted(place.photos.rglob("*")) == files


def test_no_figure_replaces_a_file_that_is_there(place: Place, here: Path) -> None:
    images = [place.photo("train", 0)]
    for name in ("a", "b"):
        (here / name).mkdir()
        images.append(here / name / images[0].name)
        images[-1].write_bytes(images[0].read_bytes())
    stem = images[0].stem
    figures = here / "figures"
    figures.mkdir()
    (figures / f"{stem}-explained.png").write_text("mine")
    command("explain", place.run, *images, "--out", figures).done()
    assert sorted(os.listdir(figures)) == [
        f"{stem}-explained-2.png",
        f"{stem}-explained-3.png",
        f"{stem}-explained-4.png",
        f"{stem}-explained.png",
    ]
    assert (figures / f"{stem}-explained.png").read_text() == "mine"


def test_the_table_of_an_explanation_adds_up(place: Place, tmp_path: Path) -> None:
    text = command("explain", place.run, place.photo(), "--out", tmp_path, "--top", "1").done()
    title, _, *rows, logit, heading, columns, activated, figure = text.splitlines()
    assert title.startswith(f"{place.photo()} (")
    assert title.split(": ")[1].split(",")[0] in ("albatross", "booby & tern", "crow")
    assert rows[0].startswith("prototype ")
    assert [row.split()[1] for row in rows[1:]] == ["more", "more"]
    parts = [float(row.split()[-1]) for row in rows]
    assert sum(parts) == pytest.approx(float(logit.split()[-1]), abs=0.002)
    assert heading == "most activated prototypes"
    assert columns.split() == ["of", "where", "similarity"]
    assert re.fullmatch(r"prototype \d+ +(albatross|booby & tern|crow) .*\d\.\d{3}", activated)
    assert figure == f"figure: {tmp_path / place.photo().stem}-explained.png"


@pytest.mark.parametrize(
    ("arguments", "option", "use"),
    [
        (("run", "--out", "figures"), "--out", "goes with image files only"),
        (("run", "a.jpg", "--samples", "3"), "--samples", "goes with a whole run"),
        (("run", "a.jpg", "--seed", "0"), "--seed", "goes with a whole run"),
    ],
)
def test_options_that_would_be_ignored(arguments: tuple[str, ...], option: str, use: str) -> None:
    answer = command("explain", *arguments)
    assert answer.code == 2
    assert option in answer.err
    assert use in answer.err
