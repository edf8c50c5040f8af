"""`protofast audit --batch-size`, and what is said where memory is short."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from commands import Place, command

from protofast.audits import Subject
from protofast.audits.audit import Row
from protofast.audits.computed import how
from protofast.audits.robust_accuracy import RobustAccuracy, RobustAccuracySettings
from protofast.cli.audits import audit_and_report
from protofast.cli.errors import MemoryShortError, exit_code, is_expected, one_line

FEW = ("--images", "4", "--audit", "robust_accuracy", "--set", "robust_accuracy.steps=2")


def _units(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.glob("units/**/*.json")}


def test_batch_sizes(place: Place) -> None:
    command("audit", place.run, *FEW, "--batch-size", "2").done()
    folder = place.run / "audits" / "paper"
    before, units = json.loads((folder / "audit.json").read_text()), _units(folder)
    assert before["audits"][0]["computed"] == {how(torch.device("cpu"), 2): 4}
    answer = command("audit", place.run, *FEW)
    assert answer.code == 0
    assert "finished work is kept that was computed otherwise (2 units: CPU" in answer.err
    assert _units(folder) == units
    after = json.loads((folder / "audit.json").read_text())
    assert {**after, "times": 0} == {**before, "times": 0}
    assert command("audit", place.run, *FEW, "--batch-size", "0").code == 2


class Hungry(RobustAccuracy):
    """Needs more memory than there is."""

    def measure(self, subject: Subject, positions: Sequence[int]) -> list[Row]:
        torch.empty(10**15)
        return super().measure(subject, positions)


@pytest.mark.parametrize(
    ("batch_size", "remedy"),
    [
        (None, "go on in smaller batches with: audit in 2"),  # of 4 images, not of 16
        (64, "go on in smaller batches with: audit in 2"),
        (3, "go on in smaller batches with: audit in 1"),
        (1, "one image at a time is too much already: use another device, or a smaller model"),
    ],
)
def test_too_little_memory(
    place: Place, tmp_path: Path, batch_size: int | None, remedy: str
) -> None:
    audit = Hungry(RobustAccuracySettings(images=4))
    out = tmp_path / "audit"
    with pytest.raises(MemoryShortError) as caught:
        audit_and_report(
            [place.run],
            [audit],
            out,
            checkpoint="best",
            seed=0,
            device=torch.device("cpu"),
            again=lambda images: f"audit in {images}",
            batch_size=batch_size,
        )
    said = one_line(caught.value)
    assert said.startswith("out of memory (")
    assert said.endswith(f"; what is done is kept; {remedy}")
    assert (is_expected(caught.value), exit_code(caught.value)) == (True, 1)
    assert len(_units(out)) == 1, "the predictions"


def test_too_large_test_images(place: Place) -> None:
    settings = place.run / "settings.toml"
    settings.write_text(settings.read_text().replace("size = 32", "size = 1000000"))
    said = command("audit", place.run, *FEW).error
    assert said.startswith("out of memory (")
    assert said.endswith(
        "; the test images are kept in memory; to read each when it is needed, write in_memory = "
        f"false into {place.run / 'settings.toml'} ([data])"
    )
