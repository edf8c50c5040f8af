"""Running audits: unit by unit, resumed, never stale, and the same bytes in the end."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dimming import (
    CLASSES,
    IMAGES,
    SIZE,
    UNITS,
    Counting,
    DimmingSettings,
    Run,
    small_model,
    timeless,
)

from protofast.audits import AuditedModel, run_audits
from protofast.data import ImageSet, MemoryImageSet
from protofast.errors import DataError

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_one_image_alone(run: Run, birds: ImageSet) -> None:
    result, _ = run(images=birds.subset([1]))
    assert result.finished
    assert result.summary["audits"][0]["skipped"] == {"too dark already": 1}
    kept = result.summary["audits"][0]["numbers"][0]
    assert (kept["value"], kept["n"]) == (None, 0)
    assert result.summary["audits"][0]["pictures"] == []
