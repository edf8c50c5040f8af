"""Folders and files that are missing, empty, or something else; nothing is touched."""

import json
import os
import shutil
from pathlib import Path

import pytest
from commands import Place, command

from protofast.cli.runs import place_of_images
from protofast.training import RunFolder

ON_RUNS = ("evaluate", "project", "prune", "explain", "report", "train --resume")


@pytest.mark.parametrize("name", ON_RUNS)
def test_a_folder_that_is_no_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place, said in (
        ("nowhere", "no"),
        ("empty", "run folder"),
        ("other", "settings.toml"),
        ("file", "run folder"),
    ):
        answer = command(*name.split(), tmp_path / place)
        assert answer.code == 1
        assert said in answer.error
        assert str(tmp_path / place) in answer.error
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]
    assert not list((tmp_path / "empty").iterdir())


def test_a_new_run_takes_no_place_that_is_taken(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    before = place.state()
    answer = command("train", place.settings, "--out", place.run)
    assert f"already holds a run; go on with it (protofast train --resume {place.run})" in (
        answer.error
    )
    assert place.state() == before
    for name in ("train", "demo"):
        recipe = [place.settings] if name == "train" else []
        assert "not an empty folder" in command(name, *recipe, "--out", other).error
        assert [path.name for path in other.iterdir()] == ["notes.txt"]
    below_a_file = command("train", place.settings, "--out", other / "notes.txt" / "run")
    assert "there is a file where a folder is needed" in below_a_file.error


def test_an_empty_folder_is_welcome(place: Place, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    command("train", place.settings, "--out", tmp_path / "new", "--no-report").done()


@pytest.mark.parametrize("name", ["evaluate", "project", "prune", "explain"])
@pytest.mark.usefixtures("unchanged")
def test_images_that_are_gone(place: Place, name: str) -> None:
    place.photos.rename(place.photos.with_name("away"))
    said = command(name, place.run).error
    assert f"{place.photos}: no such folder" in said
    assert f"(data.root in {place.run / 'settings.toml'}; put the images back, say with" in said
    assert "with --data where they are now, or write it there)" in said
    wrong = command(name, place.run, "--data", place.photos.with_name("nowhere")).error
    assert "nowhere: no such folder" in wrong
    assert "data.root" not in wrong
    place.photos.mkdir()
    assert "the folder is empty" in command(name, place.run).error
    (place.photos / "a.jpg").write_bytes(b"")
    assert "expected one folder of images per class" in command(name, place.run).error


@pytest.mark.parametrize("name", ["evaluate", "project", "explain", "audit"])
def test_images_that_have_moved(place: Place, name: str) -> None:
    few = ("--audit", "robust_accuracy", "--images", "2", "--set", "robust_accuracy.steps=1")
    options = few if name == "audit" else ()
    place.photos.rename(place.photos.with_name("moved photos"))
    assert "say with --data where they are now" in command(name, place.run, *options).error
    settings = (place.run / "settings.toml").read_bytes()
    command(name, place.run, *options, "--data", place.photos.with_name("moved photos")).done()
    assert (place.run / "settings.toml").read_bytes() == settings
    away = place.photos.with_name("moved photos") / "test" / "crow"
    sorted(away.iterdir())[0].rename(away / "raven.png")
    answer = command(name, place.run, *options, "--data", away.parents[1])
    assert "the test images are others than the run's: names or labels differ" in answer.err


def test_two_folders_of_images_that_have_moved(place: Place, tmp_path: Path) -> None:
    file = place.run / "settings.toml"
    sides = f'root = "{place.photos}/train"\ntest_root = "{place.photos}/test"'
    file.write_text(file.read_text().replace(f'root = "{place.photos}"', sides))
    (place.photos / "test").rename(tmp_path / "tests")
    gone = command("evaluate", place.run).error
    assert f"(data.test_root in {file}; put the images back, or write there where they" in gone
    said = command("evaluate", place.run, "--data", tmp_path / "tests").error
    assert f"write where they are now into {file} (data.root, data.test_root)" in said


def test_groups_that_lie_among_the_images_move_with_them(place: Place, tmp_path: Path) -> None:
    file, root = place.run / "settings.toml", f'root = "{place.photos}"'
    text = file.read_text()
    for groups, now in (
        (place.photos / "groups.csv", tmp_path / "moved" / "groups.csv"),
        (tmp_path / "groups.csv", tmp_path / "groups.csv"),
    ):
        file.write_text(text.replace(root, f'{root}\ngroups = "{groups}"'))
        there = place_of_images(RunFolder.open(place.run), tmp_path / "moved")
        assert (there.root, there.groups) == (str(tmp_path / "moved"), str(now))


def test_training_on_images_that_are_not_there(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for photos, said in (("nowhere", "no such folder"), ("empty", "the folder is empty")):
        out = tmp_path / "new"
        answer = command("train", place.settings, "--data", tmp_path / photos, "--out", out)
        assert said in answer.error
        assert not out.exists()
    answer = command("train", "paper", "--set", "data.root=nowhere", "--out", out)
    assert answer.error.endswith("(say with --data where the images are)")


@pytest.mark.parametrize("name", ["evaluate", "project", "prune", "explain", "train --resume"])
def test_images_of_other_classes(place: Place, name: str) -> None:
    for side in ("train", "test"):
        (place.photos / side / "crow").rename(place.photos / side / "dodo")
    before = place.state()
    said = command(*name.split(), place.run).error
    assert "'crow' is missing and 'dodo' is new; restore the data" in said
    for side in ("train", "test"):
        (place.photos / side / "dodo").rename(place.photos / side / "albatross" / "more")
    said = command(*name.split(), place.run).error
    assert "the network knows 3 classes, the data have 2: 'crow' is missing" in said
    after = place.state()
    if name == "train --resume":  # which notes that it was started
        for changing in ("environment.json", "log.txt"):
            before.pop(changing)
            after.pop(changing)
    assert before == after


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user whom permissions bind, not root")
def test_a_run_that_may_only_be_read(place: Place, tmp_path: Path) -> None:
    folders = [path for path in (place.run, *place.run.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        _assert_read_only(place, tmp_path / "figures")
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_run_on_a_read_only_disk(place: Place, read_only: Path, tmp_path: Path) -> None:
    _assert_read_only(place._replace(run=read_only), tmp_path / "figures")


def _assert_read_only(place: Place, figures: Path) -> None:
    before = place.state()
    for name in ("evaluate", "project", "prune", "explain", "report", "train --resume"):
        answer = command(*name.split(), place.run)
        assert "change the permissions, or work on a copy elsewhere" in answer.error
        assert str(place.run) in answer.error
    assert place.state() == before
    command("explain", place.run, place.photo(), "--out", figures).done()
    assert (figures / f"{place.photo().stem}-explained.png").is_file()


def test_a_moved_run_still_finds_its_images(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in (("--data", "photos"), ("--set", "data.root=photos")):
        monkeypatch.chdir(tmp_path)
        command("train", place.settings, *source, "--out", "new", "--no-report").done()
        shutil.rmtree(tmp_path / "moved", ignore_errors=True)
        (tmp_path / "new").rename(tmp_path / "moved")
        monkeypatch.chdir("/")
        command("evaluate", tmp_path / "moved").done()
    numbers = json.loads((tmp_path / "moved" / "evaluation" / "metrics.json").read_text())
    assert numbers["images"] == 9
