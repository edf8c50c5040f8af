"""Every audit on a network of somebody else's, which keeps the model protocol and nothing more."""

import json
from pathlib import Path

import pytest
import torch
from foreign_model import ForeignModel
from torch import nn

from protofast.audits import AUDITS, AuditedModel, build_audits, run_audits
from protofast.audits.jpeg import REMARKS
from protofast.audits.spatial_misalignment import REMARKS as MISALIGNMENT_REMARKS
from protofast.data import ImageSet, MemoryImageSet
from protofast.models import PrototypeModel
from protofast.report import write_audit_report

IMAGES = 5


@pytest.fixture(scope="module")
def subject() -> tuple[PrototypeModel, ImageSet]:
    """For grey images that are not square; and random ones, most of which it names rightly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        patches = nn.Conv2d(1, 6, 8, stride=4, padding=2)
        model = ForeignModel(
            patches, depth=6, num_channels=1, input_size=(24, 32), mean=[0.5], std=[0.2]
        )
        pixels = torch.randint(256, (IMAGES, 1, 24, 32), dtype=torch.uint8)
    pixels[1] = 128  # flat: every map is, too, but for the padding
    with torch.no_grad():
        labels = model(pixels / 255).logits.argmax(dim=1)
    labels[0] = (labels[0] + 1) % 3
    source = ImageSet(
        classes=["a", "b", "c"],
        labels=labels,
        names=[f"{number}.png" for number in range(IMAGES)],
        channels=1,
        size=(24, 32),
    )
    return model, MemoryImageSet(pixels, source=source)


@pytest.mark.parametrize("kind", AUDITS, ids=lambda kind: kind.name)
def test_any_network_can_be_audited(
    kind: type, subject: tuple[PrototypeModel, ImageSet], tmp_path: Path
) -> None:
    model, images = subject
    few = [f"{kind.name}.steps=2"] if hasattr(kind.protocols["paper"], "steps") else []
    audits = build_audits([kind.name], protocol="all", images=IMAGES, overrides=few)
    assert [audit.settings.protocol for audit in audits] == list(kind.protocols)
    result = run_audits([AuditedModel(name="theirs", model=model)], images, audits, tmp_path / "a")
    assert result.finished
    assert result.summary["models"][0]["accuracy"] == (IMAGES - 1) / IMAGES
    for entry in result.summary["audits"]:
        assert entry["rows"] == IMAGES, "no image is left out silently"
        assert sum(entry["skipped"].values()) < IMAGES
        assert set(entry["left_open"]) <= set(entry["settings"])
        if kind.name == "jpeg":  # no run says what is compressed, so the protocol does
            codec = {"paper": "simplejpeg", "released": "pillow"}[entry["protocol"]]
            assert (entry["settings"]["codec"], "codec" in entry["left_open"]) == (codec, True)
        measured = [number for number in entry["numbers"] if number["value"] is not None]
        assert measured
        assert all(0 < number["n"] <= IMAGES for number in measured)
    for audit, entry in zip(audits, result.summary["audits"], strict=True):
        units = result.folder / "units" / "theirs" / f"{kind.name}-{entry['protocol']}"
        files = sorted(units.glob("*.json"))
        rows = [row for file in files for row in json.loads(file.read_text())["rows"]]
        numbers = {number["key"]: number for number in entry["numbers"]}
        for key, values in audit.values(rows).items():
            assert len(values) == numbers[key]["n"]
            if values:
                mean = sum(values.values()) / len(values)
                assert mean == pytest.approx(numbers[key]["value"])
        unpaired = {key for key in numbers if key not in audit.values(rows)}
        assert unpaired <= {"still_right", *REMARKS, *MISALIGNMENT_REMARKS}
    written = write_audit_report(result.folder)
    assert written.problems == ()
    assert json.loads((result.folder / "audit.json").read_text()) == result.summary
