"""The folder of a run: never overwritten, locked, readable, and plain about what is missing."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protofast.errors import CheckpointError, RunFolderError
from protofast.training import RunFolder, Settings, build_model
from protofast.training.run_folder import model_tensors


def test_a_new_folder_is_whole_and_never_made_twice(
    tiny: Callable[..., Settings], tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "run"
    folder = RunFolder.create(path, tiny())
    assert RunFolder.open(path).settings == tiny()
    assert folder.rows() == []
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder.create(path, tiny())
    assert [entry.name for entry in path.parent.iterdir()] == ["run"], "no draft is left"


def test_what_is_there_is_not_overwritten(tiny: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("thesis", "file"):
        with pytest.raises(RunFolderError, match="not an empty folder"):
            RunFolder.create(tmp_path / name, tiny())
    assert RunFolder.create(tmp_path / "empty", tiny()).settings == tiny()


def test_opening_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run folder"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(RunFolderError, match=r"has no settings\.toml"):
        RunFolder.open(tmp_path)


def test_one_process_at_a_time(tiny: Callable[..., Settings], tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", tiny())
    script = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'a')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(folder.path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(RunFolderError, match="another process"), folder.lock():
            pass
        other.kill()  # a killed process holds nothing
    with folder.lock():
        pass


def test_a_file_system_without_locks_is_named(
    tiny: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    folder = RunFolder.create(tmp_path / "run", tiny())
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunFolderError, match=r"has no locks \(No locks available\)"), folder.lock():
        pass


def test_what_a_killed_process_left_is_not_in_the_way(
    tiny: Callable[..., Settings], tmp_path: Path
) -> None:
    stale = tmp_path / f".run.{os.getpid()}.tmp"  # process numbers come again
    (stale / "checkpoints").mkdir(parents=True)
    folder = RunFolder.create(tmp_path / "run", tiny())
    (tmp_path / "other").mkdir()
    assert folder.path.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [stale.name, "other", "run"]


def test_sweeping_leaves_what_others_are_writing(
    tiny: Callable[..., Settings], tmp_path: Path
) -> None:
    folder = RunFolder.create(tmp_path / "run", tiny())
    (folder.path / "evaluation").mkdir()
    own = {"checkpoints/.latest.7.tmp", "prototypes/.prototypes.json.7.tmp", ".settings.toml.7.tmp"}
    others = {"evaluation/.metrics.json.8.tmp", ".report.html.8.tmp"}
    for name in own | others:
        (folder.path / name).touch()
    folder.sweep()
    left = {str(file.relative_to(folder.path)) for file in folder.path.rglob(".*.tmp")}
    assert left == others


def test_checkpoints_may_go_while_one_looks(
    tiny: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path / "run", tiny())
    folder.write("joint-2", {"a": torch.ones(1)}, {})
    (folder.checkpoints / "joint-1.safetensors").symlink_to("gone")
    assert folder.names() == ["joint-2"]
    pointed = iter(["joint-1", "joint-2"])  # training moves on between two looks
    monkeypatch.setattr(RunFolder, "pointer", lambda *_: next(pointed))
    assert folder.read("latest")[0] == "joint-2"


def test_models_come_back_and_missing_ones_are_named(
    tiny: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = tiny()
    folder = RunFolder.create(tmp_path / "run", settings)
    with pytest.raises(CheckpointError, match="there are none yet"):
        folder.load_model()
    model = build_model(settings.model, settings.data, num_classes=3)
    facts = {"model": model.config, "classes": ["a", "b", "c"]}
    folder.write("joint-2", model_tensors(model), facts)
    folder.point("latest", "joint-2")
    for which in ("best", "latest", "joint-2"):  # without a best one, the latest
        loaded = folder.load_model(which)
        assert loaded.classes == ("a", "b", "c")
        assert loaded.settings == settings
        assert not loaded.model.training
        for one, other in zip(model.parameters(), loaded.model.parameters(), strict=True):
            assert torch.equal(one, other)
    with pytest.raises(CheckpointError, match=r"no checkpoint joint-3 in .*; there are joint-2"):
        folder.load_model("joint-3")
    other = build_model(tiny("model.depth=9").model, settings.data, num_classes=3)
    folder.write("odd", model_tensors(other), facts)
    with pytest.raises(CheckpointError, match=r"odd does not fit.*add_on\.0\.bias is \[9\] there"):
        folder.load_model("odd")


def test_numbers_that_json_does_not_know_become_null(
    tiny: Callable[..., Settings], tmp_path: Path
) -> None:
    folder = RunFolder.create(tmp_path / "run", tiny())
    row = {"loss": float("nan"), "rates": {"a": float("inf"), "b": 1.0}, "list": [-float("inf")]}
    folder.append_metrics([row])
    assert "NaN" not in folder.metrics.read_text()
    assert "Infinity" not in folder.metrics.read_text()
    assert folder.rows() == [{"loss": None, "rates": {"a": None, "b": 1.0}, "list": [None]}]


def test_metrics_are_cut_back_and_half_lines_ignored(
    tiny: Callable[..., Settings], tmp_path: Path
) -> None:
    folder = RunFolder.create(tmp_path / "run", tiny())
    folder.append_metrics([{"kind": "epoch", "loss": 1.0}])
    size = folder.metrics_size()
    folder.append_metrics([{"kind": "epoch", "loss": 2.0}])
    with folder.metrics.open("a") as file:
        file.write('{"kind": "epo')
    assert [row["loss"] for row in folder.rows()] == [1.0, 2.0]
    folder.cut_metrics(size)
    assert [row["loss"] for row in folder.rows()] == [1.0]
    folder.cut_metrics(10**6)
    assert folder.metrics_size() == size
