"""`protofast demo`: two models, two reports, one audit; interrupted in any phase, it goes on."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from commands import command, start, until, wait
from copies import copy_run

TINY = tuple(
    word
    for setting in (
        *("data.classes=2", "data.train_per_class=4", "data.test_per_class=2", "data.size=32"),
        *("model.depth=8", "model.prototypes_per_class=2", "training.batch_size=4"),
        *("training.workers=0", "training.schedule.epochs=2", "training.schedule.warm_epochs=1"),
        "training.schedule.last_layer_epochs=1",
    )
    for word in ("--set", setting)
)
FEW = ("--images", "1", "--threads", "1", *TINY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a whole demo, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "birds"
    return out, command("demo", "--out", out, *FEW).done()


def test_two_reports_and_an_audit(finished: tuple[Path, str]) -> None:
    out, said = finished
    for page in ("standard/report.html", "defended/report.html", "audit/audit.html"):
        assert (out / page).stat().st_size > 10_000
        assert f"report: {out / page}" in said
    audit = json.loads((out / "audit" / "audit.json").read_text())
    standard, defended = audit["models"]
    assert (standard["name"], standard["defences"]) == ("standard", [])
    assert defended["name"] == "defended"
    assert {"adversarial", "alignment"} <= set(defended["defences"])
    assert {entry["protocol"] for entry in audit["audits"]} == {"paper"}
    assert len({entry["audit"] for entry in audit["audits"]}) == len(audit["audits"]) / 2 >= 3


def test_what_is_done_is_not_done_again(finished: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "birds"
    copy_run(finished[0], out)
    written = {
        file: file.stat().st_mtime_ns
        for pattern in ("*/checkpoints/*", "*/report.html", "audit/units/**/*.json")
        for file in out.glob(pattern)
    }
    said = command("demo", "--out", out, *FEW).done()
    assert said.count("is finished already") == 2
    assert all(file.stat().st_mtime_ns == then for file, then in written.items())
    (out / "defended" / "report.html").unlink()
    shutil.rmtree(out / "audit" / "units" / "defended")
    (out / "audit" / "audit.json").unlink()
    said = command("demo", "--out", out, *FEW).done()
    assert f"{out / 'defended'} is there already; going on with it" in said
    assert f"report: {out / 'defended' / 'report.html'}" in said
    ours, whole = (
        (folder / "audit" / "audit.json").read_text().partition('"times": {')[0]
        for folder in (out, finished[0])
    )
    assert ours.replace(str(out), str(finished[0])) == whole
    answer = command("demo", "--out", out, "--images", "1")
    assert answer.code == 2
    assert "was started with other settings" in answer.error


def test_a_place_that_is_taken(finished: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds no demo (but notes.txt)" in command("demo", "--out", tmp_path, *FEW).error
    run = finished[0] / "standard"
    assert "choose another for the demo (--out)" in command("demo", "--out", run, *FEW).error


def test_too_little_memory(finished: tuple[Path, str], tmp_path: Path) -> None:
    big = ("--set", "model.depth=1000000")
    said = command("demo", "--out", tmp_path / "demo", *FEW, *big).error
    assert said.startswith("out of memory (")
    assert "; begin another demo (--out) with smaller batches or images (--set training." in said
    out = tmp_path / "birds"
    copy_run(finished[0], out)
    (out / "audit" / "audit.json").unlink()
    answer = command("demo", "--out", out, *FEW, "--batch-size", "1")
    assert f"audit report: {out / 'audit' / 'audit.html'}" in answer.out
    assert "finished work is kept that was computed otherwise" in answer.err
    assert "batches of 1)" in answer.err


def test_interrupted(tmp_path: Path) -> None:
    out = tmp_path / "my birds"
    process = start("demo", "--out", out, *FEW, "--set", "training.schedule.epochs=100000")
    until(process, (out / "standard" / "checkpoints" / "latest").exists)
    process.send_signal(signal.SIGINT)
    answer = wait(process)
    assert answer.code == 130, answer
    assert answer.err == ""
    last = answer.out.splitlines()[-1]
    assert last.startswith("interrupted")
    assert f"go on with: protofast demo --out '{out}' --images 1 --set data.classes=2" in last
    assert last.endswith("--threads 1")
