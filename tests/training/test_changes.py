"""Other settings, other images, lost checkpoints: what is taken up, and what is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from copies import copy_run, unspoilt
from small_runs import Tiny, prototype_table, train_for
from threads import one_thread

from protofast.data import Splits
from protofast.errors import DataError, SettingsError
from protofast.training import RunFolder, Settings, build_data, prune_run, train
from protofast.training.images import other_images

ONE_PROJECTION = ("training.schedule.project_every=0", "training.schedule.last_layer_epochs=1")


def train_a_little(settings: Settings, path: Path, birds: Splits, calls: int) -> RunFolder:
    """A run that is stopped after so many batches."""
    result = train_for(calls, settings, path, data=birds)
    assert not result.finished
    return result.folder


@pytest.fixture(scope="module")
def finished(tiny: Tiny, birds: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of warm-0, joint-1, joint-2, project-2, last_layer-2-0."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with one_thread():
        return train(tiny(*ONE_PROJECTION), path, data=birds).folder.path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Iterator[RunFolder]:
    """A copy of it."""
    with unspoilt(finished):
        yield RunFolder.open(copy_run(finished, tmp_path / "run"))


def _steps(folder: RunFolder) -> list[tuple[str, int]]:
    rows = [row for row in folder.rows() if row["kind"] in ("epoch", "projection")]
    return [(row["stage"], row["epoch"]) for row in rows]


def test_a_finished_run_that_is_made_longer_does_the_new_epochs(
    run: RunFolder, birds: Splits, tiny: Tiny
) -> None:
    before = _steps(run)
    longer = tiny(*ONE_PROJECTION, "training.schedule.epochs=4")
    result = train(longer, run.path, resume=True, allow_changes=True, data=birds)
    assert result.finished
    assert _steps(run) == [*before, ("joint", 3), ("project", 3), ("last_layer", 3)]
    assert run.settings == longer
    tests = [row for row in run.rows() if row["kind"] == "test"]
    assert [row["projected"] for row in tests[-3:]] == [False, True, True]


def test_a_schedule_that_ends_before_the_run_is_refused(
    run: RunFolder, birds: Splits, tiny: Tiny
) -> None:
    shorter = tiny(*ONE_PROJECTION, "training.schedule.epochs=2")
    with pytest.raises(SettingsError, match=r"has no last_layer after 2, where the run stands"):
        train(shorter, run.path, resume=True, allow_changes=True, data=birds)
    assert run.settings == tiny(*ONE_PROJECTION)


def test_an_epoch_with_other_batches_starts_again(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    folder = train_a_little(tiny(), tmp_path / "run", birds, 5)
    assert folder.pointer("latest") == "joint-1-partial"
    smaller = tiny("training.batch_size=4")
    assert train(smaller, folder.path, resume=True, allow_changes=True, data=birds).finished
    assert "joint-1 has other batches now: it starts again" in (folder.path / "log.txt").read_text()
    counts = {row["images"] for row in folder.rows() if row["kind"] == "epoch"}
    assert counts == {len(birds.train)}


def test_a_refused_change_leaves_the_run_as_it_was(
    run: RunFolder, birds: Splits, tiny: Tiny
) -> None:
    before = (run.path / "settings.toml").read_bytes()
    for change in ("training.losses.class_weights=[1, 2]", "model.depth=9"):
        wrong = tiny(*ONE_PROJECTION, change, "training.schedule.epochs=4")
        with pytest.raises(Exception, match=r"2 numbers for 3 classes|does not fit the model"):
            train(wrong, run.path, resume=True, allow_changes=True, data=birds)
        assert (run.path / "settings.toml").read_bytes() == before
    assert train(None, run.path, resume=True, data=birds).finished


@pytest.mark.parametrize("to_linear", [True, False])
def test_the_head_of_the_warm_stage_may_come_and_go(
    to_linear: bool, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    linear = ("training.warm_head=linear", "training.optimizer.warm.backbone=0.004")
    before, after = tiny(*(() if to_linear else linear)), tiny(*(linear if to_linear else ()))
    folder = train_a_little(before, tmp_path / "run", birds, 5)
    assert train(after, folder.path, resume=True, allow_changes=True, data=birds).finished
    told = "not restored: the warm stage's linear layer" in (folder.path / "log.txt").read_text()
    assert told == to_linear


def test_other_images_are_refused_unless_allowed(run: RunFolder, birds: Splits, tiny: Tiny) -> None:
    fewer = Splits(birds.train, birds.project, birds.test.subset(range(1, len(birds.test))))
    with pytest.raises(DataError, match=r"^the test images are others than the run's: names"):
        train(None, run.path, resume=True, data=fewer)
    longer = tiny(*ONE_PROJECTION, "training.schedule.epochs=4")
    assert train(longer, run.path, resume=True, allow_changes=True, data=fewer).finished
    assert "the test images are others than the run's" in (run.path / "log.txt").read_text()
    known = run.load_model("latest").images
    assert other_images(known, train=birds.train, test=fewer.test) is None
    told = other_images(known, train=fewer.test, test=birds.test)
    assert told is not None
    assert told.startswith("the training and test images are others")


def test_prototypes_that_moved_on_are_no_patches_any_more(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    schedule = ("epochs=4", "last_layer_epochs=0", "project_last=false")
    settings = tiny(*(f"training.schedule.{each}" for each in schedule))
    folder = train_a_little(settings, tmp_path / "run", birds, 16)
    assert folder.pointer("latest") == "joint-3-partial"
    assert len(folder.load_model("project-2").prototypes) == 6
    assert folder.load_model("latest").prototypes == []
    assert train(None, folder.path, resume=True, data=birds).finished
    assert folder.pointer("latest") == "joint-3"
    assert folder.pointer("best") == "project-2"
    assert folder.load_model("latest").prototypes == []
    assert prototype_table(folder) == []
    with pytest.raises(SettingsError, match="never projected"):
        prune_run(folder, birds, checkpoint="latest")


def test_a_best_checkpoint_that_is_gone_is_forgotten(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    joint = ("training.schedule.project_every=0", "training.schedule.project_last=false")
    folder = train_a_little(tiny(*joint), tmp_path / "run", birds, 9)
    best = folder.pointer("best")
    assert best in ("warm-0", "joint-1")
    (folder.checkpoints / f"{best}.safetensors").unlink()
    result = train(None, folder.path, resume=True, data=birds)
    assert result.best == folder.pointer("best") == "joint-2"
    folder.load_model("best")


def test_images_that_cannot_be_learnt_from_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    small = tiny("data.size=16", "training.batch_size=23")  # 24 images, a latent map of 1 x 1
    data = build_data(small.data, threads=1)
    with pytest.raises(DataError, match=r"the smallest batch of the 24 training images holds just"):
        train(small, tmp_path / "run", data=data)
    aligned = ("data.size=16", "training.batch_size=22", "training.alignment.weight=1")
    half = tiny(*aligned, "training.alignment.fraction=0.5")  # one of the two in the last batch
    with pytest.raises(DataError, match=r"a larger training\.alignment\.fraction"):
        train(half, tmp_path / "run", data=data)
    larger = tiny("training.schedule.epochs=1", "training.batch_size=23")
    assert train(larger, tmp_path / "larger").finished, "four places are enough"
    with pytest.raises(DataError, match="there are no test images"):
        train(small, tmp_path / "run", data=Splits(data.train, data.project, data.test.subset([])))
    assert not (tmp_path / "run").exists()
