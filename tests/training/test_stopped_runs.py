"""How small runs stop, how they are taken up again, and what stops no run."""

import os
import signal
from pathlib import Path

import pytest
import torch
from copies import replace
from small_runs import Tiny, assert_same_end, train_for, train_in_pieces

from protofast.data import Splits
from protofast.errors import CheckpointError, RunFolderError, SettingsError
from protofast.training import Result, RunFolder, train
from protofast.training.progress import Silence


@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_stopped_run_goes_on_bit_for_bit(
    from_scratch: bool, done: Result, done_from_scratch: Result, birds: Splits, tmp_path: Path
) -> None:
    # Every fourth call: within epochs, projections and tests. (Three of them come before the first
    # joint batch, where the prototypes start, which is done anew.)
    whole = done_from_scratch if from_scratch else done
    result, starts = train_in_pieces(4, whole.folder.settings, tmp_path / "run", data=birds)
    assert starts > 5
    assert_same_end(whole.folder, result.folder)
    assert result.best == whole.best


def test_a_stopped_run_goes_on_bit_for_bit_with_two_threads(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    torch.set_num_threads(2)
    settings = tiny("training.schedule.epochs=2")
    whole = train(settings, tmp_path / "undisturbed", data=birds)
    result, starts = train_in_pieces(6, settings, tmp_path / "run", data=birds)
    assert starts > 1
    assert_same_end(whole.folder, result.folder)
    assert result.best == whole.best


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_leave_a_run_to_resume(
    number: signal.Signals, done: Result, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    class Press(Silence):
        calls = 0

        def advance(self, *args: object, **kwargs: object) -> None:
            self.calls += 1
            if self.calls == 5:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    result = train(tiny(), tmp_path / "run", data=birds, progress=Press())
    assert not result.finished
    assert result.folder.pointer("latest") == "joint-1-partial"
    assert signal.getsignal(number) is before
    assert train(None, tmp_path / "run", resume=True, data=birds).finished
    assert_same_end(done.folder, result.folder)


def test_a_finished_run_is_finished(done: Result, copy: RunFolder, birds: Splits) -> None:
    again = train(None, copy.path, resume=True, data=birds)
    assert again.finished
    assert again.best == done.best
    assert_same_end(done.folder, copy)


def test_an_existing_run_is_not_overwritten(done: Result, tiny: Tiny, birds: Splits) -> None:
    with pytest.raises(RunFolderError, match=r"already holds a run.*resume"):
        train(tiny(), done.folder.path, data=birds)
    with pytest.raises(RunFolderError, match="no run folder"):
        train(tiny(), done.folder.path / "other", resume=True, data=birds)


def test_other_settings_are_named_unless_allowed(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    path = tmp_path / "run"
    train_for(2, tiny(), path, data=birds)
    changed = tiny("training.losses.l1=0.5", "training.workers=1")
    with pytest.raises(SettingsError, match=r"losses\.l1 \(0\.0001, now 0\.5\)") as caught:
        train(changed, path, resume=True, data=birds)
    assert "workers" not in str(caught.value), "workers change nothing"
    assert RunFolder.open(path).settings == tiny()
    result = train(changed, path, resume=True, allow_changes=True, data=birds)
    assert result.finished
    assert RunFolder.open(path).settings == changed


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    done: Result, copy: RunFolder, birds: Splits
) -> None:
    file = copy.checkpoints / "last_layer-2-1.safetensors"
    replace(file, file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cut short.*others in this run: .*project-2"):
        copy.load_model("latest")
    result = train(None, copy.path, resume=True, data=birds)
    assert result.finished
    log = (copy.path / "log.txt").read_text()
    assert "last_layer-2-1.safetensors is cut short or damaged" in log
    assert "resumed from checkpoint last_layer-2-0" in log
    assert_same_end(done.folder, copy)
    for name in copy.names():
        replace(copy.checkpoints / f"{name}.safetensors", b"nothing")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read"):
        train(None, copy.path, resume=True, data=birds)


def test_tensorboard_files_are_written(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    train_for(9, tiny("training.tensorboard=true"), tmp_path / "run", data=birds)
    train(None, tmp_path / "run", resume=True, data=birds)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_time_between_checkpoints_is_respected(tiny: Tiny, birds: Splits, tmp_path: Path) -> None:
    names: list[str] = []

    class Watch(Silence):
        def advance(self, *args: object, **kwargs: object) -> None:
            names.extend(path.name for path in (tmp_path / "run").rglob("*partial*"))

    train(tiny("training.checkpoint_seconds=0"), tmp_path / "run", data=birds, progress=Watch())
    assert "joint-1-partial.safetensors" in names
    assert not list((tmp_path / "run").rglob("*partial*")), "removed when the epoch is complete"
