"""`protofast reproduce` as a command: pages of what is there, damage, and going on."""

import signal
from pathlib import Path

import pytest
from commands import command, start, until, wait

from protofast.cli.train import data_overrides
from protofast.reproduce import load_plan

PLAN = """
name = "tiny"
title = "Two kinds of birds"
recipe = "demo"
seeds = [0]
set = [
  "data.size=32", "data.classes=2", "data.train_per_class=4", "data.test_per_class=4",
  "model.depth=4", "model.prototypes_per_class=2", "training.batch_size=8",
  "training.schedule.epochs=100000",
]
[models.standard]
[[audits]]
name = "accuracy"
models = ["standard"]
audits = ["robust_accuracy"]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(PLAN)
    return file


@pytest.mark.parametrize("content", [None, "[]", "{", '{"seed": 0, "models": []}'])
def test_a_page_of_what_is_there(plan: Path, tmp_path: Path, content: str | None) -> None:
    folder, page = tmp_path / "grid", tmp_path / "page.md"
    if content is not None:
        file = folder / "audits" / "accuracy-0" / "audit.json"
        file.parent.mkdir(parents=True)
        file.write_text(content)
    out = command("reproduce", plan, "--page-only", "--out", folder, "--page", page).done()
    assert f"page: {page}" in out
    assert "0 of 2" in page.read_text()


def test_what_cannot_be_reproduced(plan: Path, tmp_path: Path) -> None:
    assert "no plan bords" in command("reproduce", "bords").error
    answer = command("reproduce", plan, "--page-only", "--beside", tmp_path)
    assert "holds no grid" in answer.error


def test_other_images_do_not_keep_the_test_images_of_a_plan(plan: Path, tmp_path: Path) -> None:
    own = '"data.kind=folders", "data.root=mine", "data.test_root=tests", "data.classes="'
    birds = '"data.train_per_class=", "data.test_per_class="'
    text = plan.read_text().replace('"data.classes=2"', own)
    text = text.replace('"data.train_per_class=4", "data.test_per_class=4"', birds)
    plan.write_text(text)
    images = tmp_path / "images"
    images.mkdir()
    options = ("--page-only", "--out", tmp_path / "grid", "--page", tmp_path / "page.md")
    command("reproduce", plan, *options).done()
    said = command("reproduce", plan, *options, "--data", images).error
    assert f"data.test_root = {tmp_path / 'tests'}, which would stay" in said
    assert said.endswith("or name both folders in the plan and leave --data out")
    for side in ("train", "test"):
        (images / side).mkdir()
    command("reproduce", plan, *options, "--data", images).done()
    place = load_plan(plan).settings("standard", 0, data_overrides(images)).data
    assert (place.root, place.test_root) == (str(images), None)


def test_too_little_memory_to_train(plan: Path, tmp_path: Path) -> None:
    plan.write_text(plan.read_text().replace("model.depth=4", "model.depth=1000000"))
    options = ("--out", tmp_path / "grid", "--page", tmp_path / "page.md")
    said = command("reproduce", plan, *options).error
    assert said.startswith("out of memory (")
    assert said.endswith(
        "training.test_batch_size, data.size in its `set`) and another folder (--out)"
    )


def test_interrupted_it_says_how_to_go_on(plan: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path / "grid", "--page", tmp_path / "page.md", "--threads", "1")
    process = start("reproduce", plan, *options)
    until(process, (tmp_path / "grid" / "runs" / "standard-0" / "settings.toml").is_file)
    process.send_signal(signal.SIGTERM)  # as Ctrl-C, see app.py
    answer = wait(process)
    assert answer.code == 130
    again = " ".join(["protofast reproduce", str(plan), *map(str, options)])
    assert f"go on with: {again}" in answer.out
    assert answer.err == ""
