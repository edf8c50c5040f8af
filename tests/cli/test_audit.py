"""`protofast audit`: what it writes and prints, what it refuses, and how it goes on."""

import fcntl
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from commands import Place, command, start, until, wait
from copies import copy_run

from protofast.audits import AUDITS, audit_runs, build_audits
from protofast.audits.runs import run_names
from protofast.cli.audit import NAMES
from protofast.errors import SettingsError
from protofast.files import write_atomically

FEW = ("--images", "4", "--audit", "robust_accuracy", "--set", "robust_accuracy.steps=2")


def _timeless(folder: Path) -> str:
    text = (folder / "audit.json").read_text()
    return text[: text.index(' "times": {')]


def _units(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.glob("units/**/*.json")}


def test_a_run(place: Place) -> None:
    answer = command("audit", place.run, *FEW)
    out = answer.done()
    folder = place.run / "audits" / "paper"
    assert re.search(r"^audited in \d+ s$", out, re.M)
    assert f"audit report: {folder / 'audit.html'}" in out
    html = (folder / "audit.html").read_bytes()
    (folder / "audit.html").unlink()
    assert f"report: {folder / 'audit.html'}" in command("report", folder).done()
    assert (folder / "audit.html").read_bytes() == html
    said = json.loads((folder / "audit.json").read_text())
    (model,) = said["models"]
    assert model["name"] == "run"
    assert model["run"] == str(place.run)
    assert model["metric"] == "squared_l2"
    assert model["settings"]["data"]["size"] == 32
    assert model["defences"] == []
    assert model["checkpoint"] == (place.run / "checkpoints" / "best").read_text().strip()
    evaluated = json.loads((place.run / "evaluation" / "metrics.json").read_text())
    assert model["checkpoint_sha256"] == evaluated["sha256"]
    assert model["accuracy"] == evaluated["accuracy"]
    (entry,) = said["audits"]
    assert entry["settings"]["steps"] == 2
    assert entry["rows"] == 4
    assert "Accuracy under attack (paper)" in out
    assert re.search(r"Accuracy under PGD-2 +\d", out)
    before = _units(folder)
    command("audit", place.run, *FEW).done()
    assert _units(folder) == before, "what is done is not done again"


def test_from_python_it_is_the_same(place: Place, tmp_path: Path) -> None:
    command("audit", place.run, *FEW).done()
    audits = build_audits(["robust_accuracy"], images=4, overrides=["robust_accuracy.steps=2"])
    result = audit_runs([place.run], audits, tmp_path / "audit")
    assert result.finished
    assert _timeless(tmp_path / "audit") == _timeless(place.run / "audits" / "paper")


def test_settings_hold_under_every_protocol_that_an_audit_knows() -> None:
    given = ["spatial_misalignment.steps=3", "head_on_stomach.steps=4"]
    built = build_audits(protocol="all", images=7, overrides=given)
    found = {(audit.name, audit.settings.protocol): audit.settings for audit in built}
    assert set(found) == {(kind.name, name) for kind in AUDITS for name in kind.protocols}
    for (name, protocol), settings in found.items():
        assert settings.images == 7
        changed = {"images": 7} | {
            "spatial_misalignment": {"steps": 3},
            "head_on_stomach": {"steps": 4},
        }.get(name, {})
        usual = next(kind for kind in AUDITS if kind.name == name).protocols[protocol]
        assert settings == usual.model_copy(update=changed)
    ratios = ["robust_accuracy.epsilon=4/255", "head_on_stomach.step_size=1/255"]
    robust, stomach, *_ = build_audits(overrides=ratios)
    assert robust.settings.epsilon == 4 / 255
    assert stomach.settings.step_size == 1 / 255
    (only,) = build_audits(protocol="targeted", overrides=given[1:])
    assert (only.name, only.settings.steps) == ("head_on_stomach", 4)
    for wrong in ("spatial_misalignment.step=3", "misalignment.steps=3"):
        with pytest.raises(SettingsError, match="did you mean spatial_misalignment"):
            build_audits(protocol="all", overrides=[wrong])


def test_help_names_every_audit() -> None:
    assert tuple(kind.name for kind in AUDITS) == NAMES


def test_names_of_runs() -> None:
    for paths, names in (
        (["runs/a"], ["a"]),
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["one/run", "two/run"], ["one-run", "two-run"]),
        (["runs/.hidden", "runs/caf\udce9"], ["hidden", "caf?"]),
        (["runs/" + 240 * "a", "runs/b"], [60 * "a", "b"]),
        (["x/1/run", "y/1/run", "y/two"], ["x-1-run", "y-1-run", f"{Path.cwd().name}-y-two"]),
    ):
        assert run_names([Path(path) for path in paths]) == names


def test_names_that_are_no_utf8_are_written_as_escapes(tmp_path: Path) -> None:
    write_atomically(tmp_path / "table.csv", "caf\udce9.png,1")
    assert (tmp_path / "table.csv").read_text() == "caf\\udce9.png,1"


def test_two_runs_side_by_side(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    copy_run(place.run, other)
    monkeypatch.chdir(tmp_path)
    out = command("audit", place.run, other, *FEW, "--protocol", "all").done()
    folder = tmp_path / "audits" / "run-vs-other" / "all"
    said = json.loads((folder / "audit.json").read_text())
    assert [model["name"] for model in said["models"]] == ["run", "other"]
    assert [(entry["model"], entry["protocol"]) for entry in said["audits"]] == [
        *((0, "paper"), (1, "paper")),
        *((0, "released"), (1, "released")),
    ]
    numbers = [entry["numbers"] for entry in said["audits"]]
    assert numbers[0] == numbers[1], "they are copies of each other"
    header, line = re.search(r"Accuracy under attack \(paper\)\n(.*)\n(.*)\n", out).groups()
    assert header.split() == ["run", "other"]
    assert len(re.findall(r"%", line)) == 2


def test_all_audits_by_default(place: Place) -> None:
    small = ("--images", "2", "--seed", "5", "--out", place.run.parent / "here")
    steps = [f"{kind.name}.steps=1" for kind in AUDITS if hasattr(kind.protocols["paper"], "steps")]
    command("audit", place.run, *small, *(w for text in steps for w in ("--set", text))).done()
    said = json.loads((place.run.parent / "here" / "audit.json").read_text())
    assert [entry["audit"] for entry in said["audits"]] == [kind.name for kind in AUDITS]
    assert said["seed"] == 5
    for entry in said["audits"]:
        assert entry["settings"].get("steps", 1) == 1
        assert entry["numbers"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--audit", "robust_acuracy"), "no such audit; did you mean robust_accuracy?; there are"),
        (("--protocol", "papr"), "must be one of paper, released, targeted, all; did you mean"),
        (
            ("--audit", "robust_accuracy", "--protocol", "targeted"),
            "--audit robust_accuracy knows no protocol targeted, only paper, released",
        ),
        (("--set", "robust_accuracy.steps"), "expected key=value, such as head_on_stomach.steps="),
        (
            ("--set", "robust_accuracy.step=3"),
            "--set robust_accuracy.step=3: unknown setting robust_accuracy.step; did you mean",
        ),
        (
            ("--set", "robust_accuracy.steps=-1"),
            "robust_accuracy.steps = -1 is not allowed: must be greater than or equal to 0",
        ),
        (("--set", "robust_accuracy.steps=many"), "robust_accuracy.steps = 'many' is not allowed"),
        (("--set", "robust_accuracy=3"), "robust_accuracy is a table; set one of its keys"),
        (("--set", "steps=3"), "unknown setting steps; did you mean "),
        (
            ("--set", "robust_accuracy.protocol=released"),
            "choose the protocol with --protocol",
        ),
        (
            ("--audit", "spatial_misalignment", "--set", "robust_accuracy.steps=3"),
            "robust_accuracy is not among the audits that were asked for (spatial_misalignment)",
        ),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_wrong_settings(place: Place, options: tuple[str, ...], said: str) -> None:
    answer = command("audit", place.run, *options)
    assert answer.code == 2
    assert said in answer.error


def test_a_setting_back_to_its_value(place: Place) -> None:
    again = ("--set", "robust_accuracy.steps=", "--set", "robust_accuracy.clean_counts=")
    command("audit", place.run, *FEW, *again, "--protocol", "released").done()
    said = json.loads((place.run / "audits" / "released" / "audit.json").read_text())
    assert said["audits"][0]["settings"]["steps"] == 10
    assert said["audits"][0]["settings"]["clean_counts"] is False, "not the class's default"


@pytest.mark.usefixtures("unchanged")
def test_what_cannot_be_audited(place: Place, tmp_path: Path) -> None:
    assert command("audit", tmp_path / "none").error == f"no run folder {tmp_path / 'none'}"
    assert "is not a run folder" in command("audit", place.photos).error
    said = command("audit", place.run, place.run, *FEW).error
    assert said == f"{place.run} is given twice; an audit takes each run once"
    assert "no checkpoint warm-7" in command("audit", place.run, "--checkpoint", "warm-7").error
    assert (
        "is in the folder of the run's images"
        in command("audit", place.run, *FEW, "--out", place.photos).error
    )
    assert (
        "neither an audit folder nor empty"
        in command("audit", place.run, *FEW, "--out", place.run).error
    )


def test_numbers_that_would_be_lost_are_not_replaced(place: Place, tmp_path: Path) -> None:
    command("audit", place.run, *FEW).done()
    folder = place.run / "audits" / "paper"
    before = (folder / "audit.json").read_bytes()
    for options, said in (
        (("--audit", "jpeg"), "holds robust_accuracy (paper) too, which would no longer be in its"),
        ((*FEW, "--seed", "1"), "holds an audit with seed 0, not 1; choose another folder (--out)"),
        (
            (*FEW, "--checkpoint", "warm-0"),
            "holds an audit of other models or checkpoints; choose another folder (--out)",
        ),
    ):
        answer = command("audit", place.run, *options)
        assert answer.code == 2
        assert f"{folder} {said}" in answer.error
    assert (folder / "audit.json").read_bytes() == before
    command("audit", place.run, *FEW, "--audit", "jpeg").done()
    said = json.loads((folder / "audit.json").read_text())
    assert [entry["audit"] for entry in said["audits"]] == ["robust_accuracy", "jpeg"]


def test_pictures_do_not_get_among_the_images(place: Place) -> None:
    out = place.photo().parent / "audit"
    answer = command("audit", place.run, *FEW, "--out", out)
    assert answer.code == 2
    assert "is in the folder of the run's images (data.root" in answer.error
    assert not out.exists()
    inside = place.photos / ".runs" / "run"
    copy_run(place.run, inside)
    answer = command("audit", inside, *FEW)
    assert "is in the folder of the run's images (data.root" in answer.err


def test_runs_that_do_not_belong_together(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other"
    copy_run(place.run, other)
    settings = other / "settings.toml"
    text = settings.read_text()
    settings.write_text(text.replace("size = 32", "size = 48"))
    said = command("audit", place.run, other, *FEW).error
    assert said == (
        f"{other} has other test images than {place.run}: data.size is 48, not 32; audit them apart"
    )
    settings.write_text(text)
    for side in ("train", "test"):
        extra = place.photo(side).parent.with_name("dodo")
        extra.mkdir()
        shutil.copy(place.photo(side), extra)
    assert "'dodo' is new" in command("audit", place.run, *FEW).error


def test_compressed_classes_are_audited_as_they_were_before(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "compressed"
    copy_run(place.run, other)
    settings = other / "settings.toml"
    text = settings.read_text()
    assert 'compressed = "none"' in text
    settings.write_text(text.replace('compressed = "none"', 'compressed = "odd"'))
    for runs in ((place.run, other), (other, place.run)):
        out = tmp_path / runs[0].name
        command("audit", *runs, *FEW, "--audit", "jpeg", "--out", out / "audit").done()
        said = json.loads((out / "audit" / "audit.json").read_text())
        numbers = {(each["audit"], each["model"]): each["numbers"] for each in said["audits"]}
        assert numbers["robust_accuracy", 0] == numbers["robust_accuracy", 1]
        assert said["models"][0]["accuracy"] == said["models"][1]["accuracy"]
        assert {model["settings"]["data"]["jpeg"]["compressed"] for model in said["models"]} == {
            *("none", "odd")
        }


def test_images_that_changed_since_the_training(place: Place) -> None:
    place.photo("test").unlink()
    answer = command("audit", place.run, *FEW)
    assert answer.code == 0
    assert "warning" in answer.err
    assert "the test images are others than the run's" in answer.err


def test_interrupted_and_gone_on_with(place: Place, tmp_path: Path) -> None:
    options = ("--audit", "robust_accuracy", "--set", "robust_accuracy.restarts=100000")
    out = tmp_path / "an audit"
    same = ("--out", out, "--threads", "1", "--batch-size", "3")
    process = start("audit", place.run, *options, *same)
    until(process, (out / "units" / "run" / "predictions" / "0000.json").exists)
    process.send_signal(signal.SIGTERM)  # as Ctrl-C, see app.py
    answer = wait(process)
    assert answer.code == 130
    assert answer.err == ""
    again = f"protofast audit {place.run} --audit robust_accuracy --set " + (
        f"robust_accuracy.restarts=100000 --out '{out}' --threads 1 --batch-size 3"
    )
    assert answer.out.splitlines()[-1] == f"interrupted; what is done is kept; go on with: {again}"
    assert not list(out.rglob("*.tmp"))
    before = _units(out)
    command("audit", place.run, *FEW, *same).done()
    assert before.items() <= _units(out).items(), "the predictions are not made again"


def test_two_audits_at_once(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    command("audit", place.run, *FEW, "--out", out).done()
    with (out / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = command("audit", place.run, *FEW, "--out", out).error
        assert said == f"another process is working on {out}; wait for it or stop it"


def test_a_full_disk(place: Place, small_disk: Path) -> None:
    out = small_disk / "audit"
    command("audit", place.run, *FEW, "--out", out).done()
    units = _units(out)
    for name in ("audit.json", "audit.html"):  # old ones go first, which would make room
        (out / name).unlink()
    room = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"\0" * (room.f_bavail * room.f_frsize))
    options = (*FEW, "--set", "robust_accuracy.steps=3", "--out", out)
    answer = command("audit", place.run, *options)
    assert answer.code == 1
    assert "No space left on device; free some space and run the command again" in answer.error
    assert _units(out) == units
    (small_disk / "filler").unlink()
    answer = command("audit", place.run, *options)
    assert answer.code == 0
    assert "of other weights, images, settings, code or versions (1 unit) is comp" in answer.err


def test_a_run_is_the_same_however_it_is_typed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.run)
    typed = (place.run, ".", "../run/", "../run/checkpoints/..")
    for number, run in enumerate(typed):
        command("audit", run, *FEW, "--out", tmp_path / str(number)).done()
        for name in ("settings.toml", "tables/run-robust_accuracy-paper.csv"):
            expected = (tmp_path / "0" / name).read_bytes()
            assert (tmp_path / str(number) / name).read_bytes() == expected
        assert _timeless(tmp_path / str(number)) == _timeless(tmp_path / "0")


def test_a_folder_whose_name_is_no_utf8(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "caf\udce9"
    copy_run(place.run, run)
    for _ in range(2):
        assert f"numbers: {tmp_path}/caf\\udce9/audits/paper" in command("audit", run, *FEW).done()
    said = json.loads((run / "audits" / "paper" / "audit.json").read_text())
    assert said["models"][0]["run"] == str(run)
