"""The folder of an audit: units, pictures and tables on the disk, and what is somebody else's."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dimming import UNITS, Run, timeless
from disk_space import largest_file

from protofast.audits import Picture
from protofast.audits.files import AuditFolder, Unit, fingerprint, table_text
from protofast.errors import RunFolderError
from protofast.files import locked

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("[]"),
        lambda file: file.write_text('{"rows": [], "seconds": 1, "fingerprint": "0"}'),
        lambda file: file.write_bytes(b"\xff\xfe\x00"),
        lambda file: file.write_text('{"rows": ' + "[" * 100_000),
        lambda file: file.unlink(),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: shutil.copy(file.with_name("0003.json"), file),
    ],
    ids=["half", "empty", "list", "foreign", "bytes", "deep", "gone", "folder", "another"],
)
def test_a_spoilt_unit_is_made_anew(
    run: Run, finished: Path, whole: Path, spoil: Callable[[Path], Any]
) -> None:
    unit = finished / "units" / "a" / "dimming-paper" / "0002.json"
    spoil(unit)
    if unit.is_dir():  # somebody's own; nothing of ours is in the way of it
        with pytest.raises(IsADirectoryError):
            run()
        unit.rmdir()
    result, audit = run()
    assert len(audit.measured) == 1
    assert timeless(result.folder) == timeless(whole)


def test_half_written_files_are_swept(run: Run, finished: Path) -> None:
    folder = finished
    half = [
        folder / "units" / "a" / "dimming-paper" / ".0001.json.4711.tmp",
        folder / ".audit.json.4711.tmp",
        folder / "tables" / ".a-dimming-paper.csv.4711.tmp",
        folder / "pictures" / "a" / ".dimming-paper.4711.tmp" / "0-clean.png",
    ]
    for file in half:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    foreign = folder / "units" / "notes.txt"
    foreign.write_text("mine")
    run()
    assert not list(folder.rglob("*.tmp"))
    assert foreign.read_text() == "mine"


def test_lost_pictures_are_drawn_again(run: Run, finished: Path) -> None:
    said = json.loads((finished / "audit.json").read_text())
    picture = finished / said["audits"][0]["pictures"][0]["files"]["dark"]
    content = picture.read_bytes()
    picture.unlink()
    _, audit = run()
    assert audit.drawn == 1
    assert audit.measured == []
    assert picture.read_bytes() == content


def test_two_processes_do_not_write_one_audit(run: Run, finished: Path) -> None:
    with (
        locked(finished),
        pytest.raises(RunFolderError, match=r"another process is working on .*audit; wait"),
    ):
        run()


@pytest.mark.parametrize("name", ["settings.toml", "photo.jpg", "checkpoints/best"])
def test_other_folders_are_left_alone(run: Run, tmp_path: Path, name: str) -> None:
    file = tmp_path / "audit" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(RunFolderError, match=r"neither an audit folder nor empty \(it holds"):
        run()
    assert [path for path in (tmp_path / "audit").rglob("*") if path.is_file()] == [file]


@pytest.mark.parametrize("content", ["epochs = 3", "seed = 3", "mine", "[data]\nseed = 1"])
def test_somebody_elses_units_and_settings_are_left_alone(
    run: Run, tmp_path: Path, content: str
) -> None:
    (tmp_path / "audit" / "units").mkdir(parents=True)
    (tmp_path / "audit" / "settings.toml").write_text(content)
    half = tmp_path / "audit" / ".mine.tmp"
    half.write_text("mine")
    with pytest.raises(RunFolderError, match="neither an audit folder nor empty"):
        run()
    assert half.exists()
    assert (tmp_path / "audit" / "settings.toml").read_text() == content


def test_without_its_units_an_audit_is_made_anew(run: Run, finished: Path, whole: Path) -> None:
    shutil.rmtree(finished / "units")
    result, audit = run()
    assert len(audit.measured) == 2 * UNITS
    assert timeless(result.folder) == timeless(whole)


def test_an_audit_killed_before_its_settings_goes_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "audit" / "units").mkdir(parents=True)
    for name in (".lock", ".settings.toml.4711.tmp"):
        (tmp_path / "audit" / name).write_text("")
    assert run()[0].finished


def test_a_file_in_the_way(run: Run, tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("mine")
    with pytest.raises(RunFolderError, match="is a file; choose another folder"):
        run()


def test_a_full_disk_loses_nothing(run: Run, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(fail_at=2)
    units = sorted((tmp_path / "audit" / "units" / "a" / "dimming-paper").iterdir())
    content = [file.read_bytes() for file in units]
    with largest_file(200), pytest.raises(OSError, match="File too large") as caught:
        run()
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value.filename).endswith("0002.json")
    assert [file.read_bytes() for file in units] == content
    assert not list((tmp_path / "audit").rglob("*.tmp"))
    result, audit = run()
    assert len(audit.measured) == 2 * UNITS - 2
    assert timeless(result.folder) == timeless(whole)


def test_a_picture_that_was_not_drawn_is_a_mistake(tmp_path: Path) -> None:
    folder = AuditFolder.open(tmp_path / "audit")
    missing = [Picture(files={"clean": "a.png"}, caption="")]
    with pytest.raises(FileNotFoundError, match=r"the picture a\.png was not drawn"):
        folder.pictures("a/dimming-paper", "mark", lambda _: missing)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_pictures_are_on_the_disk_before_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def draw(folder: Path) -> list[Picture]:
        (folder / "a.png").write_bytes(b"drawn by an audit of somebody's own")
        return [Picture(files={"clean": "a.png"}, caption="")]

    folder = AuditFolder.open(tmp_path / "audit")
    monkeypatch.setattr(os, "fsync", noted)
    folder.pictures("a/dimming-paper", "mark", draw)
    listed = next(at for at, name in enumerate(synced) if name.startswith(".pictures.json."))
    assert "a.png" in synced[:listed]
    assert synced[-3:] == ["a", "pictures", "audit"]


def test_fingerprints_tell_values_apart() -> None:
    same = fingerprint({"a": 1, "b": [1.5, None]})
    assert fingerprint({"b": (1.5, float("nan")), "a": 1}) == same
    others = [{"a": 1, "b": [1.5]}, {"a": 1, "b": [1.5000001, None]}, {"a": "1", "b": [1.5, None]}]
    assert len({same, *map(fingerprint, others)}) == 4


def test_tables_hold_what_rows_hold() -> None:
    rows = [{"image": 1, "name": 'a, "b"'}, {"image": 2, "extra": {"x": [1]}, "name": None}]
    assert table_text(rows) == 'image,name,extra\n1,"a, ""b""",\n2,,"{""x"": [1]}"\n'
    assert table_text([]) == "\n"


def test_units_are_on_the_disk_as_they_are_given_back(tmp_path: Path) -> None:
    folder = AuditFolder.open(tmp_path / "audit")
    given = [{"image": 0, "value": float("nan"), "place": (1, 2), "third": 1 / 3}]
    assert not folder.has_unit("a/b-paper", 0)
    fresh = folder.write_unit("a/b-paper", 0, "mark", Unit(given, 1, "by hand", 1.23456))
    assert fresh[1:] == (1, "by hand", 1.235)
    assert folder.has_unit("a/b-paper", 0)
    assert fresh == folder.read_unit("a/b-paper", 0, "mark")
    assert fresh.rows == [{"image": 0, "value": None, "place": [1, 2], "third": 1 / 3}]
    assert folder.read_unit("a/b-paper", 0, "other") is None
    assert folder.read_unit("a/b-paper", 1, "mark") is None
    assert os.listdir(folder.path) == ["units"]
