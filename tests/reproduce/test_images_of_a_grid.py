"""Photographs of a grid: those that its runs were trained on, and others of the same layout."""

import shutil

import pytest
from PIL import Image
from threads import one_thread

from protofast.audits.runs import shared_data
from protofast.data import open_birds
from protofast.errors import DataError
from protofast.reproduce import Grid, load_plan
from protofast.training import RunFolder, train

PLAN = """
name = "photos"
title = "Two kinds of birds in folders"
recipe = "demo"
seeds = [0]
set = [
  "data.kind=folders", "data.classes=", "data.train_per_class=", "data.test_per_class=",
  "data.root=photos", "data.size=32", "data.test_fraction=0.25",
  "model.depth=4", "model.prototypes_per_class=2", "training.batch_size=8",
  "training.schedule.epochs=2", "training.schedule.warm_epochs=1",
  "training.schedule.last_layer_epochs=1",
]
[models.standard]
[models.jpeg]
parts = ["jpeg"]
[[audits]]
name = "accuracy"
models = ["standard", "jpeg"]
audits = ["robust_accuracy"]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A plan, its photographs, and a grid of which one model is trained."""
    home = tmp_path_factory.mktemp("home")
    (home / "plan.toml").write_text(PLAN)
    drawn = open_birds(classes=2, train_per_class=8, test_per_class=1, size=32, cache=home).train
    for index in range(len(drawn)):
        file = home / "photos" / f"kind {int(drawn.labels[index])}" / f"{index:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.image(index).permute(1, 2, 0).numpy()).save(file)
    grid = Grid(load_plan(home / "plan.toml"), home / "grid")
    with one_thread():
        train(grid.plan.settings("standard", 0), grid.run("standard", 0))
    return home


def carry_out(home, *data):
    """What is begun, until the first cell, which is not carried out."""
    begun = []

    def refuse(settings, path, there):
        begun.append((path.name, settings.data.root))
        return 130

    grid = Grid(load_plan(home / "plan.toml"), home / "grid", data)
    assert grid.carry_out(refuse, refuse, lambda line: None) == 130
    return begun


def test_the_same_photographs_are_gone_on_with_wherever_they_are(home, tmp_path):
    assert carry_out(home) == [("jpeg-0", str(home / "photos"))]
    moved = shutil.copytree(home / "photos", tmp_path / "moved")
    assert carry_out(home, f"data.root={moved}") == [("jpeg-0", str(moved))]


def test_audits_read_photographs_where_they_are_now(home, tmp_path):
    moved = shutil.copytree(home / "photos", tmp_path / "moved")
    plan = load_plan(home / "plan.toml")
    folders = [RunFolder.open(Grid(plan, home / "grid").run("standard", 0))]
    here = plan.settings("standard", 0, [f"data.root={moved}"]).data
    assert shared_data(folders).root == str(home / "photos")
    assert shared_data(folders, here).root == str(moved)
    changed = shared_data(folders).model_dump() | {"root": str(moved)}
    assert shared_data(folders, here).model_dump() == changed


@pytest.mark.parametrize("change", ["name", "fewer"])
def test_other_photographs_of_the_same_layout_are_refused(home, tmp_path, change):
    others = shutil.copytree(home / "photos", tmp_path / "others")
    file = sorted(others.rglob("*.png"))[0]
    if change == "name":
        file.rename(file.with_name("another.png"))
    else:
        file.unlink()
    with pytest.raises(DataError) as refused:
        carry_out(home, f"data.root={others}")
    said = str(refused.value)
    assert f"standard-0 was trained on the images in {home / 'photos'}, but in {others} the" in said
    assert "are others than the run's: names or labels differ; give the folder that it" in said


def test_photographs_that_are_gone_are_asked_for(home, tmp_path):
    with pytest.raises(DataError, match=r"gone.*say with --data where the images are"):
        carry_out(home, f"data.root={tmp_path / 'gone'}")
