"""How units are computed changes last digits alone: what is done is kept, told and written down."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dimming import IMAGES, UNITS, Counting, DimmingSettings, small_model, timeless

from protofast.audits import AuditedModel, AuditResult, run_audits
from protofast.audits.computed import how, images_at_once
from protofast.data import ImageSet

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


Run = Callable[..., tuple[AuditResult, Counting, list[str]]]


@pytest.fixture
def run(birds: ImageSet, tmp_path: Path) -> Run:
    """Runs the small audit on one model, and what it warned of."""

    def go(
        batch_size: int | None, *, fail_at: int | None = None, out: str = "audit", **settings: Any
    ) -> tuple[AuditResult, Counting, list[str]]:
        audit = Counting(DimmingSettings(**settings), fail_at=fail_at)
        models = [AuditedModel(name="a", model=small_model())]
        said: list[str] = []
        result = run_audits(
            models, birds, [audit], tmp_path / out, batch_size=batch_size, warn=said.append
        )
        return result, audit, said

    return go


def files(folder: Path) -> dict[str, bytes]:
    units = (folder / "units").rglob("*.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in units}


def computed(folder: Path) -> dict[str, int]:
    (entry,) = json.loads((folder / "audit.json").read_text())["audits"]
    return dict(entry["computed"])


def test_units_go_through_the_model_together_as_far_as_a_batch_holds_them(run: Run) -> None:
    single, audit, _ = run(1)
    assert [len(images) for images in audit.measured] == [4] * UNITS
    for batch_size, sizes in ((7, [4] * UNITS), (12, [12, 12]), (20, [20, 4]), (999, [24])):
        result, audit, said = run(batch_size, out=f"{batch_size}")
        assert [len(images) for images in audit.measured] == sizes
        assert said == []
        assert files(result.folder).keys() == files(single.folder).keys()
        assert computed(result.folder) == {how(CPU, batch_size): IMAGES}
        for entry in ("models", "audits"):
            (ours,), (theirs,) = result.summary[entry], single.summary[entry]
            assert ours.keys() == theirs.keys()
        for ours, theirs in zip(
            result.summary["audits"][0]["numbers"],
            single.summary["audits"][0]["numbers"],
            strict=True,
        ):
            close = {k: v if isinstance(v, str) else pytest.approx(v) for k, v in theirs.items()}
            assert ours == close
    assert (images_at_once(CPU, None), images_at_once(torch.device("cuda"), None)) == (16, 64)
    assert images_at_once(CPU, 5) == 5


def test_another_batch_size_does_nothing_again_and_is_written_down(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(4, fail_at=3)
    result, audit, (said,) = run(8)
    assert [len(images) for images in audit.measured] == [8, 8]  # of the first, half was there
    assert computed(result.folder) == {how(CPU, 4): 12, how(CPU, 8): 12}
    assert "finished work is kept that was computed otherwise (4 units: CPU" in said
    assert f"batches of 4; now: {how(CPU, 8)})" in said
    assert str(result.folder) in said
    whole, audit, again = run(8)
    assert (audit.measured, audit.drawn, again) == ([], 0, [said])
    assert timeless(whole.folder) == timeless(result.folder)


def test_what_is_done_of_a_batch_is_not_written_again(run: Run) -> None:
    whole, _, _ = run(12, out="whole")
    first, _, _ = run(12)
    unit = first.folder / "units" / "a" / "dimming-paper" / "0004.json"
    before = files(first.folder)
    (first.folder / "audit.json").unlink()
    unit.unlink()
    result, audit, said = run(12)
    assert [len(images) for images in audit.measured] == [12], "in the batch that it was in before"
    assert said == []
    after = files(result.folder)
    name = str(unit.relative_to(first.folder))
    assert json.loads(after.pop(name))["rows"] == json.loads(before.pop(name))["rows"]
    assert after == before
    assert timeless(result.folder) == timeless(whole.folder)


def test_finished_work_that_does_not_fit_is_told_before_it_is_replaced(run: Run) -> None:
    run(4)
    result, _, (said,) = run(4, brightness=0.75)
    assert said == (
        f"{result.folder}: finished work of other weights, images, settings, code or versions "
        f"({UNITS} units) is computed anew"
    )


def test_work_of_another_number_of_threads_is_kept_and_told(run: Run, tmp_path: Path) -> None:
    """Begun on one thread, finished by a process that has two."""
    with pytest.raises(KeyboardInterrupt):
        run(4, fail_at=3)
    out = tmp_path / "audit"
    before = files(out)
    assert len(before) == 1 + 3  # predictions, too
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("resume_audit.py")), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    warned, finished = ran.stdout.splitlines()
    assert finished == "finished"
    one = how(CPU, 4)
    two = one.replace("1 thread", "2 threads")
    assert f"is kept that was computed otherwise (4 units: {one}; now: {two})" in warned
    assert before.items() <= files(out).items()
    said = json.loads((out / "audit.json").read_text())
    assert said["models"][0]["computed"] == {one: IMAGES}
    assert said["audits"][0]["computed"] == {one: 12, two: IMAGES - 12}
    assert said["times"]["environment"]["threads"] == 2
