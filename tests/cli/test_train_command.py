"""Training by command: finding data, leaks, resuming, what is printed."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import Place, command
from PIL import Image

from protofast.cli.train import data_overrides
from protofast.training import RunFolder, load_settings

TINY = (
    *("--set", "data.size=32", "--set", "model.depth=8", "--set", "model.backbone=small"),
    *("--set", "model.weights=none", "--set", "model.prototypes_per_class=2"),
    *("--set", "training.workers=0", "--set", "training.schedule.epochs=2"),
    *("--set", "training.schedule.warm_epochs=1", "--set", "training.schedule.passes=1"),
    *("--set", "training.schedule.last_layer_epochs=1"),
    *("--set", "training.schedule.last_layer_passes=1"),
    *("--set", "training.schedule.project_last=true"),
)


def test_a_run_leaves_everything_a_user_looks_for(original: Place) -> None:
    evaluation = original.run / "evaluation"
    numbers = json.loads((evaluation / "metrics.json").read_text())
    assert numbers["images"] == 9
    with (evaluation / "per_class.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == [
            "albatross",
            "booby & tern",
            "crow",
        ]
    for name in ("confusion.csv", "predictions.csv"):
        assert (evaluation / name).is_file()
    assert (original.run / "explanations" / "summary.json").is_file()
    assert (original.run / "report.html").is_file()


def test_what_is_printed(place: Place) -> None:
    run = place.run.with_name("new")
    lines = command("train", place.settings, "--out", run).done().splitlines()
    steps = [line.split()[0] for line in lines if "images/s" in line]
    assert steps == ["warm-0", "joint-1", "project-1", "last_layer-1-0"]
    best = RunFolder.open(run).resolve("best")
    assert re.fullmatch(rf"trained in \d+ s; best checkpoint: {best}", lines[-6])
    assert lines[-5] == f"checkpoint {best}, 9 test images"
    assert [line.split("  ")[0] for line in lines[-4:-1]] == [
        "accuracy",
        "balanced accuracy",
        "AUROC",
    ]
    assert lines[-1] == f"report: {run / 'report.html'}"


def test_a_finished_run_is_reported_anew(place: Place) -> None:
    (place.run / "report.html").unlink()
    shutil.rmtree(place.run / "evaluation")
    metrics = (place.run / "metrics.jsonl").read_bytes()
    out = command("train", "--resume", place.run).done()
    assert f"{place.run} is finished already: all 4 steps are done; best checkpoint: " in out
    assert (place.run / "report.html").is_file()
    assert (place.run / "evaluation" / "metrics.json").is_file()
    assert (place.run / "metrics.jsonl").read_bytes() == metrics


def test_any_recipe_takes_a_folder_of_ones_own(place: Place) -> None:
    for recipe in ("paper", "demo", "cub80"):
        settings = load_settings(recipe, data_overrides(place.photos))
        assert (settings.data.kind, settings.data.root) == ("folders", str(place.photos))
        assert settings.data.classes is settings.data.crop is settings.data.train_per_class is None


def test_layouts_are_recognised(tmp_path: Path) -> None:
    assert data_overrides(None) == []
    (tmp_path / "images.txt").touch()
    assert "data.kind=cub" in data_overrides(tmp_path)
    (tmp_path / "images.txt").unlink()
    (tmp_path / "devkit").mkdir()
    assert "data.kind=cars" in data_overrides(tmp_path)
    settings = load_settings("demo", [*data_overrides(tmp_path / "it's = a [folder]")])
    assert settings.data.root == str(tmp_path / "it's = a [folder]")


def test_other_images_do_not_keep_the_test_images_of_a_recipe(place: Place) -> None:
    sides = [f'root = "{place.photos}/train"', f'test_root = "{place.photos}/test"']
    text = place.settings.read_text()
    place.settings.write_text(text.replace(f'root = "{place.photos}"', "\n".join(sides)))
    others, out = place.photos.with_name("others"), place.run.with_name("new")
    (others / "crow").mkdir(parents=True)
    train = ("train", place.settings, "--data", others, "--out", out)
    said = command(*train).error
    assert f"data.test_root = {place.photos}/test, which would stay" in said
    assert said.endswith("or add --set data.test_root=FOLDER")
    said = command(*train, "--set", f"data.test_root={place.photos}/test").error
    assert f"{others}: only one class folder" in said, "this is allowed, and looked at"
    for side in ("train", "test"):
        (others / side).mkdir()
    settings = load_settings(place.settings, data_overrides(others))
    assert (settings.data.root, settings.data.test_root) == (str(others), None)


@pytest.mark.parametrize("how", ["bytes", "pixels", "link"])
def test_an_image_on_both_sides_stops_training(place: Place, how: str) -> None:
    source = sorted((place.photos / "train" / "crow").glob("*.png"))[0]
    twin = place.photos / "test" / "crow" / "twin.png"
    if how == "link":
        twin.symlink_to(source)
    elif how == "bytes":
        twin.write_bytes(source.read_bytes())
    else:
        Image.open(source).save(twin, compress_level=0)
        assert twin.read_bytes() != source.read_bytes()
    run = place.run.with_name("new")
    arguments = ("train", place.settings, "--out", run, "--no-report")
    said = command(*arguments).error
    assert said.startswith("training and test data overlap: test image 'test/crow/twin.png' ")
    assert "train nevertheless with the setting data.leaks=allow" in said
    assert "allow=(" not in said  # that is for Python
    assert not run.exists()
    command(*arguments, "--set", "data.leaks=allow").done()
    # Looked at once, before training: what follows does not ask again.
    command("evaluate", run).done()
    if how == "link":  # the other run was trained before the image came
        assert "the test images are others than the run's" in command("evaluate", place.run).err


def test_a_patient_on_both_sides_stops_training(place: Place) -> None:
    files = sorted(place.photos.rglob("*.*"))
    rows = ["path,group,split"]
    for number, file in enumerate(files):
        path = file.relative_to(place.photos)
        group = "patient 7" if number in (0, len(files) - 1) else f"patient {100 + number}"
        rows.append(f"{path},{group},{path.parts[0]}")
    table = place.photos.with_name("patients.csv")
    table.write_text("\n".join(rows) + "\n")
    run = place.run.with_name("new")
    arguments = ("train", place.settings, "--out", run, "--set", f"data.groups={table}")
    said = command(*arguments).error
    assert "'patient 7' is both in the training and in the test images" in said
    assert not run.exists()
    command(*arguments, "--no-report", "--set", "data.leaks=allow").done()


def test_threads(place: Place) -> None:
    torch.set_num_threads(2)
    run = place.run.with_name("new")
    command("train", place.settings, "--out", run, "--no-report", "--threads", "1").done()
    assert json.loads((run / "environment.json").read_text())["starts"][0]["threads"] == 1


def test_the_accelerator_of_the_settings_is_what_auto_means(place: Place) -> None:
    run = place.run.with_name("new")
    arguments = ("train", place.settings, "--out", run, "--set", "training.accelerator=cuda")
    if not torch.cuda.is_available():
        answer = command(*arguments)
        assert answer.code == 2
        assert "training.accelerator cuda asks for a GPU" in answer.error
    command(*arguments, "--device", "cpu", "--no-report").done()
    assert json.loads((run / "environment.json").read_text())["starts"][0]["device"] == "cpu"


def test_divergence_is_no_reason_to_resume(place: Place) -> None:
    run = place.run.with_name("new")
    rates = "training.optimizer.warm.prototypes=1e30"
    answer = command(
        "train", place.settings, "--out", run, "--set", rates, "--set", "data.leaks=allow"
    )
    assert "diverged" in answer.error
    assert "--resume" not in answer.error


def test_out_of_memory_is_one_line(place: Place) -> None:
    run = place.run.with_name("new")
    answer = command("train", place.settings, "--out", run, "--set", "data.size=1000000")
    assert answer.code == 1
    assert answer.error.startswith("out of memory (")
    assert "data.size" in answer.error


def test_images_may_be_moved(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = place.run / "checkpoints"
    warm = RunFolder.open(place.run).file("warm-0")
    for file in checkpoints.glob("*.safetensors"):
        if file != warm:
            file.unlink()
    moved = place.photos.rename(place.photos.with_name("moved"))
    resume = ("train", "--resume", place.run, "--no-report")
    assert "say with --set data.root=FOLDER where they are now" in command(*resume).error
    monkeypatch.chdir(moved.parent)
    crow = sorted((moved / "test" / "crow").iterdir())[0]
    crow.rename(crow.with_name("raven.png"))
    others = command(*resume, "--set", "data.root=moved").error
    assert "the test images are others than the run's" in others
    assert RunFolder.open(place.run).settings.data.root == str(place.photos), "as it was"
    crow.with_name("raven.png").rename(crow)
    assert "trained in" in command(*resume, "--set", "data.root=moved").done()
    assert RunFolder.open(place.run).settings.data.root == str(moved)


def test_pretrained_weights_are_not_needed_to_resume(place: Place) -> None:
    weights = place.run.with_name("weights.pth")
    backbone = RunFolder.open(place.run).load_model("best").model.backbone
    torch.save(backbone.state_dict(), weights)
    run = place.run.with_name("new")
    override = ("--set", f"model.weights={weights}", "--no-report")
    command("train", place.settings, "--out", run, *override).done()
    (run / "checkpoints" / "last_layer-1-0.safetensors").write_bytes(b"")
    weights.unlink()
    assert "trained in" in command("train", "--resume", run, "--no-report").done()
    answer = command("train", place.settings, "--out", run.with_name("newer"), *override)
    assert f"no weights file {weights}" in answer.error
    assert not run.with_name("newer").exists()


def test_parts_go_over_a_recipe_and_a_run_over_another(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.run.parent)
    parts = ("--with", "adversarial", "--with", "aligned")
    command("train", place.settings, *parts, "--from", place.run, "--no-report").done()
    made = RunFolder.open(place.run.parent / "runs" / "tiny-adversarial-aligned")
    training, weights = made.settings.training, made.settings.model.weights
    assert training.adversarial.method == "fgsm"
    assert training.last_layer_images == "augmented"
    assert training.alignment.weight == 10
    trained = RunFolder.open(place.run)
    assert weights == str(trained.file(trained.resolve("best")).absolute())
    warm = next(row for row in made.rows() if row["kind"] == "epoch")
    assert warm["alignment"] > 0


def test_a_network_of_other_classes_is_no_start(place: Place) -> None:
    for side in ("train", "test"):
        (place.photos / side / "crow").rename(place.photos / side / "raven")
    run = place.run.with_name("new")
    answer = command("train", place.settings, "--from", place.run, "--out", run, "--no-report")
    assert answer.code == 2
    assert "was trained on other classes than the images have" in answer.error
    assert "'crow' is missing and 'raven' is new; take images of the same" in answer.error
    assert not run.exists()


def test_a_recipe_that_goes_on_from_a_run_asks_from_which(place: Place) -> None:
    run = place.run.with_name("new")
    answer = command("train", "demo_defended", "--out", run)
    assert answer.code == 2
    assert "go on from the network of another run; say from which with --from RUN" in answer.error
    assert "rendering" not in answer.err, "it is said before the images are read"
    assert not run.exists()


def test_parts_and_runs_that_are_not_there(place: Place) -> None:
    answer = command("train", place.settings, "--with", "adversary", "--out", "new")
    assert answer.code == 2
    assert "unknown part 'adversary'; did you mean adversarial?; parts are" in answer.error
    answer = command("train", place.settings, "--from", "nowhere", "--out", "new")
    assert answer.code == 1
    assert "no run folder nowhere" in answer.error
    for more in (("--with", "masking"), ("--from", place.run)):
        answer = command("train", "--resume", place.run, *more)
        assert answer.code == 2
        assert "--resume RUN takes recipe, parts, data, weights and folder from" in answer.error
