"""Settings that are not allowed: one line that says where, what and what instead."""

from pathlib import Path

import pytest
from commands import Place, command

from protofast.cli.train import RECIPES


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.depht=3", "unknown setting model.depht; did you mean model.depth?"),
        ("batch_size=3", "unknown setting batch_size; did you mean training.batch_size?"),
        ("model.depth=x", "model.depth = 'x' is not allowed: must be a valid integer"),
        ("model.depth=0", "model.depth = 0 is not allowed: must be greater than or equal to 1"),
        ("model.metric=l3", "must be one of 'squared_l2', 'l2', 'dot', 'cosine'"),
        ("training.losses.l1=nan", "training.losses.l1 = nan is not allowed"),
        ("data.size=8", "data.size: images must be at least 16 pixels high and wide"),
        ("data.classes=2", "belongs to data.kind birds or cub or cars, not folders"),
        ("model.metric=dot", "model.metric dot allows similarity linear only"),
        ("model", "expected key=value, such as training.batch_size=32"),
        ("model=3", "model is a table; set one of its keys"),
        ("=3", "expected key=value"),
        ("model.depth.x=3", "model.depth has no keys of its own"),
        ("model.backbone=resnet19", "resnet18"),
        ("training.losses.class_weights=[1.0]", "1 numbers for 3 classes"),
    ],
)
def test_set(place: Place, override: str, said: str) -> None:
    out = place.run.with_name("new")
    answer = command("train", place.settings, "--out", out, "--set", override)
    assert answer.code == 2
    assert said in answer.error
    assert not out.exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("depth = 8", "depht = 8", ":10: unknown setting model.depht; did you mean model.depth?"),
        ("depth = 8", "depth = 'eight'", ":10: model.depth = 'eight' is not allowed"),
        ("depth = 8", "depth = -8", ":10: model.depth = -8 is not allowed"),
        ("depth = 8", "depth = 8 8", "is not valid TOML"),
        ("[model]", "[modle]", ":7: unknown setting modle; did you mean model?"),
    ],
)
def test_a_file_of_settings(place: Place, old: str, new: str, said: str) -> None:
    place.settings.write_text(place.settings.read_text().replace(old, new, 1))
    answer = command("train", place.settings, "--out", place.run.with_name("new"))
    assert answer.code == 2
    assert answer.error.startswith(str(place.settings))
    assert said in answer.error


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.size=2000", "data.size: birds are rendered at 1024 pixels at most"),
        ("data.classes=1", "data.classes: there are 2 to 500 classes of rendered birds"),
        ("data.classes=501", "data.classes: there are 2 to 500 classes of rendered birds"),
        ('data.classes=["wren"]', "data.classes: rendered birds take a number of classes"),
        ("data.channels=1", "data.channels: rendered birds have 3 channels"),
        ("data.train_per_class=1000001", "must be less than or equal to 1000000"),
        ("model.depth=99999999999999999999999", "must be less than or equal to 1000000"),
        ("data.render_seed=99999999999999999999999", "data.render_seed = 99999999999999999999999"),
        ("training.seed=99999999999999999999999", "must be less than 9223372036854775808"),
        ("training.seed=-99999999999999999999999", "must be greater than or equal to -92233720"),
    ],
)
def test_what_the_demo_cannot_do(tmp_path: Path, override: str, said: str) -> None:
    answer = command("demo", "--out", tmp_path / "new", "--set", override)
    assert answer.code == 2
    assert said in answer.error
    assert not (tmp_path / "new").exists()


def test_a_single_class_of_photographs() -> None:
    answer = command("train", "paper", "--set", "data.classes=1")
    assert answer.code == 2
    assert "data.classes: at least two classes are needed" in answer.error


def test_home_in_the_place_of_the_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    answer = command("train", "paper", "--set", "data.root=~/images")
    assert answer.error.startswith(f"{tmp_path}/images: no such folder")


def test_recipes() -> None:
    assert "which recipe?" in command("train", "").error
    assert "did you mean hoffmann?" in command("train", "hofmann").error
    for arguments in (("train",), ("train", "nothing-like-it")):
        assert all(name in command(*arguments).error for name in RECIPES)
    assert "no settings file mine.toml" in command("train", "mine.toml").error


def test_options_of_train_that_exclude_each_other(place: Place) -> None:
    for extra in (["paper"], ["--data", place.photos], ["--out", "new"]):
        answer = command("train", "--resume", place.run, *extra)
        assert answer.code == 2
        assert "leave the others out" in answer.error
    answer = command("train", place.settings, "--out", "new", "--allow-changes")
    assert "--allow-changes goes with --resume" in answer.error


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "--device must be auto, cpu, cuda or cuda:N; got 'gpu'"),
        ("mps", "--device must be auto, cpu, cuda or cuda:N; got 'mps'"),
        ("cpu:-2", "--device must be auto, cpu, cuda or cuda:N; got 'cpu:-2'"),
        ("cuda:99", "cuda:99"),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_device(place: Place, device: str, said: str) -> None:
    for arguments in (
        ("train", place.settings, "--out", place.run.with_name("new")),
        ("evaluate", place.run),
        ("project", place.run),
        ("prune", place.run),
        ("explain", place.run),
    ):
        answer = command(*arguments, "--device", device)
        assert answer.code == 2
        assert said in answer.error


def test_changed_settings_of_a_resumed_run_are_refused(place: Place) -> None:
    before = place.state()
    answer = command("train", "--resume", place.run, "--set", "model.depth=16")
    assert answer.code == 2
    assert "started with other settings: model.depth (8, now 16)" in answer.error
    assert place.state() == before
