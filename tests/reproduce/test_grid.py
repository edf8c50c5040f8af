"""A grid is carried out, interrupted, gone on with; what is done is not done again."""

import json
import shutil

import pytest
from copies import copy_run, unspoilt
from threads import one_thread

from protofast.audits import audit_runs
from protofast.errors import RunFolderError, SettingsError
from protofast.report import write_audit_report
from protofast.reproduce import Grid, load_plan, write_page
from protofast.training import RunFolder, train

PLAN = """
name = "tiny"
title = "Two kinds of birds"
recipe = "demo"
seeds = [0, 1]
set = [
  "data.size=32", "data.classes=2", "data.train_per_class=4", "data.test_per_class=4",
  "model.depth=4", "model.prototypes_per_class=2", "training.batch_size=8",
  "training.schedule.epochs=2", "training.schedule.warm_epochs=1",
  "training.schedule.last_layer_epochs=1",
]
[models.standard]
[models.aligned]
start = "standard"
parts = ["aligned"]
[[audits]]
name = "accuracy"
models = ["standard", "aligned"]
audits = ["robust_accuracy", "jpeg"]
images = 5
set = ["robust_accuracy.steps=1"]
"""
ORDER = ["train standard-0", "train aligned-0", "audit accuracy-0"]
ORDER += ["train standard-1", "train aligned-1", "audit accuracy-1"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


class Workshop:
    """Does the work of cells with the real training and audits, and remembers which it was."""

    def __init__(self, stop_after=None):
        self.did = []
        self.warnings = []
        self.stop_after = stop_after

    def train(self, settings, path, there):
        self.did.append(f"train {path.name}")
        if self.stop_after == len(self.did):
            return 130
        train(settings, path, resume=there)
        return 0

    def audit(self, runs, plan, seed, path):
        self.did.append(f"audit {path.name}")
        if self.stop_after == len(self.did):
            return 130
        options = {"checkpoint": "latest", "seed": seed, "warn": self.warnings.append}
        audit_runs(runs, plan.build(), path, **options)
        write_audit_report(path)
        return 0

    def carry_out(self, grid):
        return grid.carry_out(self.train, self.audit, lambda line: None)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "plan.toml"
    file.write_text(PLAN)
    return load_plan(file)


@pytest.fixture(scope="module")
def finished(plan, tmp_path_factory):
    """A grid that was stopped in the middle and gone on with, and what was done each time."""
    grid = Grid(plan, tmp_path_factory.mktemp("grid") / "tiny")
    first, second, third = Workshop(stop_after=3), Workshop(), Workshop()
    codes = [workshop.carry_out(grid) for workshop in (first, second, third)]
    with unspoilt(grid.folder):
        yield grid, codes, [first.did, second.did, third.did]


def test_what_is_done_is_not_done_again(finished):
    grid, codes, (first, second, third) = finished
    assert codes == [130, 0, 0]
    assert first == ORDER[:3]
    assert second == ORDER[2:]
    assert third == []
    assert all(grid.done(cell) for cell in grid.cells())


def test_a_model_starts_from_another_of_its_seed(finished):
    grid = finished[0]
    for seed in grid.plan.seeds:
        standard = RunFolder.open(grid.run("standard", seed))
        start = RunFolder.open(grid.run("aligned", seed)).settings.model.weights
        assert start == str(standard.file(standard.resolve("latest")).absolute())


def test_a_grid_can_be_opened_again(finished, plan):
    grid, _, _ = finished
    again = Grid.open(grid.folder)
    assert again.plan == plan
    assert [cell.seed for cell, _ in again.results()] == [0, 1]
    with pytest.raises(RunFolderError, match="holds no grid"):
        Grid.open(grid.folder / "runs")


def copy_of(grid, tmp_path, plan=None):
    copy_run(grid.folder, tmp_path / "copy")
    return Grid(plan or grid.plan, tmp_path / "copy")


def test_a_lost_audit_is_done_again_and_gives_the_same(finished, tmp_path):
    grid = copy_of(finished[0], tmp_path)
    file = grid.folder / "audits" / "accuracy-1" / "audit.json"
    before = json.loads(file.read_text())["audits"][0]["numbers"]
    file.unlink()
    workshop = Workshop()
    assert workshop.carry_out(grid) == 0
    assert workshop.did == ["audit accuracy-1"]
    assert json.loads(file.read_text())["audits"][0]["numbers"] == before


def test_an_audit_that_was_killed_before_its_report_is_gone_on_with(finished, tmp_path):
    grid = copy_of(finished[0], tmp_path)
    (grid.folder / "audits" / "accuracy-1" / "audit.html").unlink()
    assert len(list(grid.results())) == 2
    workshop = Workshop()
    assert workshop.carry_out(grid) == 0
    assert workshop.did == ["audit accuracy-1"]


def test_other_weights_are_audited_anew(finished, tmp_path):
    grid = copy_of(finished[0], tmp_path)
    shutil.rmtree(grid.run("aligned", 0))
    workshop = Workshop(stop_after=1)
    assert workshop.carry_out(grid) == 130
    assert workshop.did == ["train aligned-0"]
    copy_run(grid.run("standard", 0), grid.run("aligned", 0))  # weights, but not these
    (audit,) = [cell for cell in grid.cells() if cell.path.name == "accuracy-0"]
    assert not grid.done(audit)


def test_a_model_whose_start_was_trained_anew_is_not_done(finished, tmp_path):
    grid = copy_of(finished[0], tmp_path)
    shutil.rmtree(grid.run("standard", 0))
    copy_run(grid.run("standard", 1), grid.run("standard", 0))  # trained, but to others
    settings = grid.run("standard", 0) / "settings.toml"
    settings.write_text((finished[0].run("standard", 0) / "settings.toml").read_text())
    missing = [cell.path.name for cell in grid.cells() if not grid.done(cell)]
    assert missing == ["aligned-0", "accuracy-0"]
    workshop = Workshop()
    with pytest.raises(
        SettingsError, match=r"aligned-0 was trained from another standard-0.*delet"
    ):
        workshop.carry_out(grid)
    assert workshop.did == []
    shutil.rmtree(grid.run("aligned", 0))
    assert workshop.carry_out(grid) == 0
    assert workshop.did == ["train aligned-0", "audit accuracy-0"]
    (said,) = workshop.warnings
    assert "accuracy-0: finished work of other weights" in said
    assert all(grid.done(cell) for cell in grid.cells())


def test_a_start_that_is_trained_anew_now_is_found_before_anything_goes_on_from_it(
    finished, tmp_path
):
    grid = copy_of(finished[0], tmp_path)
    shutil.rmtree(grid.run("standard", 0))
    workshop = Workshop()
    with pytest.raises(SettingsError, match="aligned-0 was trained from another standard-0"):
        workshop.carry_out(grid)
    assert workshop.did == ["train standard-0"]


def test_runs_without_a_note_of_their_start_are_taken_as_they_are(finished, tmp_path):
    grid = copy_of(finished[0], tmp_path)
    notes = sorted(grid.folder.glob("runs/*.start"))
    before = [note.read_text() for note in notes]
    assert [note.name for note in notes] == ["aligned-0.start", "aligned-1.start"]
    for note in notes:
        note.unlink()
    assert all(grid.done(cell) for cell in grid.cells())
    workshop = Workshop()
    assert workshop.carry_out(grid) == 0
    assert workshop.did == []
    assert [note.read_text() for note in notes] == before


def changed(entries, **values):
    return [{**entry, **values} for entry in entries]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda said: "[]",
        lambda said: "null",
        lambda said: json.dumps(said)[:-40],
        lambda said: "",
        lambda said: json.dumps({**said, "models": said["models"][:1]}),
        lambda said: json.dumps({**said, "models": [None, None]}),
        lambda said: json.dumps({**said, "audits": {"0": 1}}),
        lambda said: json.dumps({"seed": 0}),
        lambda said: json.dumps({**said, "models": changed(said["models"], accuracy=None)}),
        lambda said: json.dumps({**said, "audits": changed(said["audits"], numbers=[1])}),
        lambda said: json.dumps({**said, "models": said["models"][::-1]}),
    ],
    ids=[
        *("list", "null", "half", "empty", "one model", "none", "table", "little"),
        *("no accuracy", "no numbers", "reversed"),
    ],
)
def test_a_damaged_audit_has_no_numbers_and_is_not_done(finished, tmp_path, spoil):
    grid = copy_of(finished[0], tmp_path)
    file = grid.folder / "audits" / "accuracy-0" / "audit.json"
    file.write_text(spoil(json.loads(file.read_text())))
    assert [cell.path.name for cell in grid.cells() if not grid.done(cell)] == ["accuracy-0"]
    assert [cell.path.name for cell, _ in grid.results()] == ["accuracy-1"]
    write_page([grid], tmp_path / "page.md")
    assert "5 of 6" in (tmp_path / "page.md").read_text()


def test_numbers_of_another_order_of_models_are_not_taken_over(finished, tmp_path):
    text = PLAN.replace('["standard", "aligned"]', '["aligned", "standard"]')
    (tmp_path / "other.toml").write_text(text)
    grid = copy_of(finished[0], tmp_path, load_plan(tmp_path / "other.toml"))
    assert list(grid.results()) == []
    workshop = Workshop()
    assert workshop.carry_out(grid) == 0
    assert workshop.did == ["audit accuracy-0", "audit accuracy-1"]
    models = [[model["name"] for model in said["models"]] for _, said in grid.results()]
    assert models == [["aligned-0", "standard-0"], ["aligned-1", "standard-1"]]


def test_a_training_that_was_killed_before_its_first_checkpoint_is_not_done(finished, tmp_path):
    grid = copy_of(finished[0], tmp_path)
    for file in (grid.run("aligned", 1) / "checkpoints").iterdir():
        file.unlink()
    missing = [cell.path.name for cell in grid.cells() if not grid.done(cell)]
    assert missing == ["aligned-1", "accuracy-1"]
    workshop = Workshop()
    assert workshop.carry_out(grid) == 0
    assert workshop.did[0] == "train aligned-1"
    assert all(grid.done(cell) for cell in grid.cells())


def test_an_audit_with_other_settings_is_not_taken_for_done(finished, tmp_path):
    text = PLAN.replace("robust_accuracy.steps=1", "robust_accuracy.steps=2")
    (tmp_path / "other.toml").write_text(text)
    grid = copy_of(finished[0], tmp_path, load_plan(tmp_path / "other.toml"))
    assert [cell.path.name for cell in grid.cells() if not grid.done(cell)] == [
        "accuracy-0",
        "accuracy-1",
    ]


def test_a_setting_that_is_younger_than_an_audit_had_the_effect_of_its_default(finished, tmp_path):
    grid = copy_of(finished[0], tmp_path)
    cell = next(cell for cell in grid.cells() if cell.work == "audit")
    file = cell.path / "audit.json"
    said = json.loads(file.read_text())
    for entry in said["audits"]:
        if entry["audit"] == "robust_accuracy":
            assert entry["settings"].pop("restarts") == 1
    file.write_text(json.dumps(said))
    assert grid.done(cell)
    text = PLAN.replace('steps=1"]', 'steps=1", "robust_accuracy.restarts=2"]')
    (tmp_path / "other.toml").write_text(text)
    other = Grid(load_plan(tmp_path / "other.toml"), grid.folder)
    assert not any(other.done(cell) for cell in other.cells() if cell.work == "audit")


def test_runs_of_other_settings_are_refused_before_anything_is_done(finished, tmp_path):
    (tmp_path / "other.toml").write_text(PLAN.replace("model.depth=4", "model.depth=5"))
    grid = copy_of(finished[0], tmp_path, load_plan(tmp_path / "other.toml"))
    workshop = Workshop()
    with pytest.raises(SettingsError, match=r"trained with other settings: model.depth \(4, now 5"):
        workshop.carry_out(grid)
    assert workshop.did == []
    assert Grid.open(grid.folder).plan == finished[0].plan, "the folder's plan is as it was"


def test_another_grids_folder_is_refused(finished, tmp_path):
    (tmp_path / "other.toml").write_text(PLAN.replace('"tiny"', '"other"'))
    grid = copy_of(finished[0], tmp_path, load_plan(tmp_path / "other.toml"))
    with pytest.raises(RunFolderError, match="holds the grid tiny"):
        Workshop().carry_out(grid)


def test_remarks_of_an_earlier_version_lock_no_folder(finished, tmp_path):
    grid = copy_of(finished[0], tmp_path)
    file = grid.folder / "plan.toml"
    text = file.read_text()
    assert "[remarks]" in text
    older = text.replace("[remarks]", '[remarks]\nold-direction = "They differed."')
    file.write_text(older)
    assert Grid.open(grid.folder).plan == grid.plan
    assert Workshop().carry_out(grid) == 0
    assert file.read_text() == text
    (tmp_path / "older.toml").write_text(older)
    with pytest.raises(SettingsError, match="old-direction is none"):
        load_plan(tmp_path / "older.toml")


def test_the_page_of_a_real_grid(finished, tmp_path):
    grid = finished[0]
    write_page([grid], tmp_path / "docs" / "fidelity.md")
    text = (tmp_path / "docs" / "fidelity.md").read_text()
    assert "| `protofast reproduce PLAN.toml` | 4 prototypes of 2 classes |" in text
    assert "6 of 6" in text
    assert "| tiny | standard | `paper` |" in text
    assert text.count("| done | done |") == 3


def test_what_a_plan_leaves_open_is_filled_in_and_compared_where_it_is_said(finished, tmp_path):
    grid = copy_of(finished[0], tmp_path, finished[0].plan)
    cell = next(cell for cell in grid.cells() if cell.work == "audit")
    said = json.loads((cell.path / "audit.json").read_text())
    entry = next(entry for entry in said["audits"] if entry["audit"] == "jpeg")
    assert entry["settings"]["quality"] == 20
    assert "quality" in entry["left_open"]
    assert grid.done(cell)
    entry["left_open"].remove("quality")  # as an audit for which it was set
    (cell.path / "audit.json").write_text(json.dumps(said))
    assert not grid.done(cell)
