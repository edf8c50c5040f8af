"""The hard promise: killed at ten random moments and resumed, a run ends bit-equal."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from protofast.training import RunFolder

KILLS = 10


def _timeless(folder: RunFolder) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if "second" not in key} for row in folder.rows()
    ]


def test_ten_kills_change_no_bit(tiny_file: Path, scratch: tuple[str, ...], tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_and_resume.py")
    overrides = ["training.checkpoint_seconds=0", "training.schedule.epochs=7", *scratch]
    ran = subprocess.run(
        [sys.executable, str(script), str(tiny_file), str(tmp_path), str(KILLS), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{KILLS} kills" in ran.stdout, ran.stdout + ran.stderr
    whole, killed = (RunFolder.open(tmp_path / name) for name in ("whole", "killed"))
    starts = json.loads((killed.path / "environment.json").read_text())["starts"]
    assert len(starts) >= KILLS // 2, "most kills fell into training, not before it"
    name, expected, facts = whole.read("latest")
    other_name, found, other_facts = killed.read("latest")
    assert name == other_name == "last_layer-6-1"
    assert expected.keys() == found.keys()
    different = [key for key in expected if not torch.equal(expected[key], found[key])]
    assert different == [], ran.stdout
    assert _timeless(whole) == _timeless(killed)
    assert whole.pointer("best") == killed.pointer("best")
    assert facts["prototypes"] == other_facts["prototypes"]
    tables = [(folder.path / "prototypes" / "prototypes.json") for folder in (whole, killed)]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    shutil.rmtree(tmp_path)  # what is left of a test is kept for a while, and this is much
