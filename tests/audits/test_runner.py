"""Running audits: unit by unit, resumed, never stale, and the same bytes in the end."""

import csv
import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dimming import CLASSES, PER_CLASS, SIZE, Counting, DimmingSettings, small_birds, small_model

from protofast.audits import AuditedModel, AuditResult, run_audits
from protofast.audits.files import AuditFolder, Unit, fingerprint, table_text
from protofast.data import ImageSet, MemoryImageSet
from protofast.errors import DataError, RunFolderError
from protofast.files import locked

IMAGES = CLASSES * PER_CLASS
UNITS = IMAGES // 4


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return small_birds(tmp_path_factory.mktemp("birds"))


@pytest.fixture(scope="module")
def models() -> list[AuditedModel]:
    return [AuditedModel(name=name, model=small_model(seed)) for seed, name in enumerate("ab")]


Run = Callable[..., tuple[AuditResult, Counting]]


@pytest.fixture
def run(birds: ImageSet, models: list[AuditedModel], tmp_path: Path) -> Run:
    """Runs the small audit on both models, into the same folder."""

    def go(**changes: Any) -> tuple[AuditResult, Counting]:
        audit = Counting(
            changes.pop("settings", DimmingSettings()), fail_at=changes.pop("fail_at", None)
        )
        whose, images = changes.pop("models", models), changes.pop("images", birds)
        out = changes.pop("out", tmp_path / "audit")
        usual = {"batch_size": 4, "warn": lambda said: None}
        return run_audits(whose, images, [audit], out, **usual | changes), audit

    return go


@pytest.fixture(scope="module")
def whole(
    birds: ImageSet, models: list[AuditedModel], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An audit folder that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "audit"
    return run_audits(models, birds, [Counting(DimmingSettings())], out, batch_size=4).folder


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, where `run` works."""
    return Path(shutil.copytree(whole, tmp_path / "audit"))


def timeless(folder: Path) -> bytes:
    """The bytes of audit.json without its times."""
    text = (folder / "audit.json").read_text()
    return text[: text.index(' "times": {')].encode()


def test_what_an_audit_leaves_behind(run: Run, birds: ImageSet) -> None:
    result, audit = run(seed=3)
    assert result.finished
    assert result.done == result.units == 2 * UNITS == len(audit.measured)
    said = json.loads((result.folder / "audit.json").read_text())
    assert said == result.summary
    assert said["format"] == 1
    assert said["seed"] == 3
    assert said["classes"] == list(birds.classes)
    assert said["data"] == {"description": birds.description, "images": IMAGES}
    assert [model["name"] for model in said["models"]] == ["a", "b"]
    assert said["models"][0]["checkpoint_sha256"] != said["models"][1]["checkpoint_sha256"]
    assert said["models"][0]["prototypes"] == 2 * CLASSES
    assert [(entry["model"], entry["audit"]) for entry in said["audits"]] == [
        (0, "dimming"),
        (1, "dimming"),
    ]
    entry = said["audits"][1]
    assert entry["protocol"] == "paper"
    assert entry["settings"] == {"brightness": 0.5, "images": None, "steps": 2, "unit": 4}
    assert entry["rows"] == IMAGES
    assert entry["skipped"] == {"too dark already": IMAGES // 3}
    kept, darker, infinite = entry["numbers"]
    assert kept["n"] == darker["n"] == IMAGES - IMAGES // 3
    assert kept["low"] <= kept["value"] <= kept["high"]
    assert infinite["value"] is None, "JSON has no infinity"
    with (result.folder / entry["table"]).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == IMAGES
    assert {row["name"] for row in table} == set(birds.names)
    shown = [row for row in table if row["kept"]]
    assert json.loads(shown[0]["cells"]) == [int(shown[0]["image"]), None]
    assert shown[0]["infinite"] == ""
    mean = sum(float(row["kept"]) for row in shown) / len(shown)
    assert kept["value"] == pytest.approx(mean, rel=1e-12)
    assert len(entry["pictures"]) == 2
    for picture in entry["pictures"]:
        assert all((result.folder / file).is_file() for file in picture["files"].values())
    assert not list(result.folder.rglob("*.tmp"))


def test_accuracy_and_predictions_are_those_of_the_model(
    run: Run, birds: ImageSet, models: list[AuditedModel]
) -> None:
    result, _ = run()
    images = torch.stack([birds.image(at) for at in range(IMAGES)]) / 255
    for said, each in zip(result.summary["models"], models, strict=True):
        each.model.eval()
        with torch.no_grad():
            right = (each.model(images).logits.argmax(1) == birds.labels).double().mean()
        assert said["accuracy"] == float(right)


@pytest.mark.usefixtures("finished")
def test_what_is_done_is_not_done_again(run: Run, whole: Path) -> None:
    again, audit = run()
    assert audit.measured == []
    assert audit.drawn == 0
    assert timeless(again.folder) == timeless(whole)


def test_interrupted_and_resumed_gives_the_same_bytes(
    run: Run, whole: Path, tmp_path: Path
) -> None:
    for at in (0, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(fail_at=at)
        assert not (tmp_path / "audit" / "audit.json").exists()
    result, audit = run()
    assert len(audit.measured) == 2 * UNITS - 3
    assert timeless(result.folder) == timeless(whole)
    for name in ("settings.toml", *(entry["table"] for entry in result.summary["audits"])):
        assert (result.folder / name).read_bytes() == (whole / name).read_bytes()


def test_asked_to_stop(run: Run) -> None:
    asked = iter([False] * 5 + [True])
    result, audit = run(stop=lambda: next(asked))
    assert not result.finished
    assert result.summary == {}
    assert len(audit.measured) == result.done == 3  # after two units of predictions
    assert result.units == 2 * UNITS
    result, audit = run(stop=lambda: True)
    assert (result.finished, audit.measured) == (False, [])


def test_progress_grows_to_its_end(run: Run) -> None:
    told: list[tuple[str, int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        run(fail_at=4, progress=lambda *said: told.append(said))
    told.clear()
    run(progress=lambda *said: told.append(said))
    assert told[0] == ("looking at images", 0, IMAGES)
    assert told[1] == ("predictions, a", 0, 2 * IMAGES)
    start = max(at for at, said in enumerate(told) if said[0].startswith("predictions"))
    work = told[start + 1 :]
    totals = {total for _, _, total in work}
    assert len(totals) == 1
    assert [done for _, done, _ in work] == sorted(done for _, done, _ in work)
    unit = work[1][1] - work[0][1]
    assert work[0][1] == 4 * unit > 0, "what is done already counts from the start"
    assert work[-1][1] == work[-1][2]
    assert work[0][0] == "Dimming (paper), a"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"settings": DimmingSettings(brightness=0.75)},
        {"settings": DimmingSettings(protocol="released")},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.usefixtures("finished")
def test_other_settings_make_all_units_anew(
    run: Run, change: dict[str, Any], tmp_path: Path
) -> None:
    result, audit = run(**change)
    assert len(audit.measured) == 2 * UNITS
    fresh, _ = run(out=tmp_path / "fresh", **change)
    assert timeless(result.folder) == timeless(fresh.folder)


@pytest.mark.usefixtures("finished")
def test_other_weights_make_that_model_anew(run: Run, models: list[AuditedModel]) -> None:
    changed = [models[0], AuditedModel(name="b", model=small_model(1))]
    with torch.no_grad():
        changed[1].model.prototypes[0, 0] += 1e-6
    _, audit = run(models=changed)
    assert len(audit.measured) == UNITS


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("change", [{"similarity": "linear"}, {"eps": 1e-2}], ids=str)
def test_the_same_weights_that_compute_something_else_make_that_model_anew(
    run: Run, models: list[AuditedModel], tmp_path: Path, change: dict[str, Any]
) -> None:
    before = models[1].model
    other = type(before).from_config({**before.config, **change})
    other.load_state_dict(before.state_dict())
    changed = [models[0], AuditedModel(name="b", model=other)]
    result, audit = run(models=changed)
    assert len(audit.measured) == UNITS
    fresh, _ = run(models=changed, out=tmp_path / "fresh")
    assert timeless(result.folder) == timeless(fresh.folder)


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("other", ["sources_checksum", "version"])
def test_rows_of_other_code_are_made_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.setattr(f"protofast.audits.runner.{other}", lambda: "another")
    _, audit = run()
    assert len(audit.measured) == 2 * UNITS


@pytest.mark.usefixtures("finished")
def test_other_pixels_make_all_anew(run: Run, birds: ImageSet) -> None:
    pixels = torch.stack([birds.image(at) for at in range(IMAGES)])
    pixels[5, 0, 0, 0] ^= 1
    _, audit = run(images=MemoryImageSet(pixels, source=birds))
    assert len(audit.measured) == 2 * UNITS


def test_a_further_model_changes_nothing_of_the_first(
    run: Run, models: list[AuditedModel], whole: Path, tmp_path: Path
) -> None:
    """But for what depends on all models: then its units are made anew."""
    alone, _ = run(models=models[:1], out=tmp_path / "alone")
    both = json.loads((whole / "audit.json").read_text())
    assert alone.summary["audits"][0]["numbers"] == both["audits"][0]["numbers"]


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


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"settings": DimmingSettings(brightness=0.75)}],
    ids=lambda change: next(iter(change)),
)
def test_numbers_do_not_outlive_what_they_were_made_from(
    run: Run, finished: Path, change: dict[str, Any]
) -> None:
    (finished / "audit.html").write_text("the report")
    run(stop=lambda: True)
    assert (finished / "audit.html").exists(), "nothing has changed"
    with pytest.raises(KeyboardInterrupt):
        run(fail_at=0, **change)
    assert not (finished / "audit.json").exists()
    assert not (finished / "audit.html").exists()


def test_a_report_does_not_outlive_its_numbers(run: Run, finished: Path) -> None:
    (finished / "audit.html").write_text("the report")
    run()
    assert not (finished / "audit.html").exists()


def test_a_file_in_the_way(run: Run, tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("mine")
    with pytest.raises(RunFolderError, match="is a file; choose another folder"):
        run()


def test_the_models_are_left_as_they_were(run: Run, models: list[AuditedModel]) -> None:
    model = models[0].model.train()
    model.backbone.conv1.eval()
    model.prototypes.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run()
    assert [module.training for module in model.modules()] == modes
    assert not model.prototypes.requires_grad
    assert model.last_layer.weight.requires_grad
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    model.prototypes.requires_grad_(True)


def test_models_that_cannot_be_audited(
    run: Run, birds: ImageSet, models: list[AuditedModel], tmp_path: Path
) -> None:
    model = models[0].model
    for wrong, said in (
        ([], "no model"),
        ([models[0], models[0]], "different names; got a, a"),
        ([AuditedModel(name="../b", model=model)], "part of file names"),
        ([AuditedModel(name=".b", model=model)], "part of file names"),
        ([AuditedModel(name="", model=model)], "part of file names"),
    ):
        with pytest.raises(ValueError, match=said):
            run(models=wrong)
    with pytest.raises(DataError, match="no images"):
        run(images=birds.subset([]))
    larger = torch.zeros((2, 3, SIZE, 2 * SIZE), dtype=torch.uint8)
    with pytest.raises(
        DataError, match=r"a was made for 3 classes and images of 32 x 32 .*32 x 64"
    ):
        run(images=MemoryImageSet(larger, source=birds.subset([0, 1])))
    with pytest.raises(ValueError, match="no audit"):
        run_audits(models, birds, [], tmp_path / "audit")
    twice = [Counting(DimmingSettings()), Counting(DimmingSettings(brightness=0.1))]
    with pytest.raises(ValueError, match="once under each protocol; got dimming-paper"):
        run_audits(models, birds, twice, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


def test_logits_that_are_not_finite(run: Run, models: list[AuditedModel]) -> None:
    broken = small_model()
    with torch.no_grad():
        broken.last_layer.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="logits that are not finite for image"):
        run(models=[models[0], AuditedModel(name="broken", model=broken)])


def test_a_full_disk_loses_nothing(run: Run, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(fail_at=2)
    units = sorted((tmp_path / "audit" / "units" / "a" / "dimming-paper").iterdir())
    content = [file.read_bytes() for file in units]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value.filename).endswith("0002.json")
    assert [file.read_bytes() for file in units] == content
    assert not list((tmp_path / "audit").rglob("*.tmp"))
    result, audit = run()
    assert len(audit.measured) == 2 * UNITS - 2
    assert timeless(result.folder) == timeless(whole)


def test_one_image_alone(run: Run, birds: ImageSet) -> None:
    result, _ = run(images=birds.subset([1]))
    assert result.finished
    assert result.summary["audits"][0]["skipped"] == {"too dark already": 1}
    kept = result.summary["audits"][0]["numbers"][0]
    assert (kept["value"], kept["n"]) == (None, 0)
    assert result.summary["audits"][0]["pictures"] == []


def test_a_picture_that_was_not_drawn_is_a_mistake(tmp_path: Path) -> None:
    from protofast.audits import Picture

    folder = AuditFolder.open(tmp_path / "audit")
    missing = [Picture(files={"clean": "a.png"}, caption="")]
    with pytest.raises(FileNotFoundError, match=r"the picture a\.png was not drawn"):
        folder.pictures("a/dimming-paper", "mark", lambda _: missing)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_pictures_are_on_the_disk_before_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from protofast.audits import Picture

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
