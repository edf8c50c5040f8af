"""The hard promise: killed at ten random moments and resumed, a run ends bit-equal."""

import json
import shutil
from pathlib import Path

from scripts import run_script
from small_runs import assert_same_end

from protofast.training import RunFolder

KILLS = 10


def test_ten_kills_change_no_bit(tiny_file: Path, scratch: tuple[str, ...], tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_and_resume.py")
    overrides = ["training.checkpoint_seconds=0", "training.schedule.epochs=7", *scratch]
    said = run_script(script, tiny_file, tmp_path, KILLS, *overrides)
    assert said.endswith(f"{KILLS} kills\n"), said
    whole = RunFolder.open(tmp_path / "whole")
    facts = whole.read("latest")[2]
    table = (whole.path / "prototypes" / "prototypes.json").read_bytes()
    folders = [RunFolder.open(path) for path in sorted(tmp_path.glob("killed-*"))]
    for killed in folders:
        assert whole.pointer("latest") == killed.pointer("latest") == "last_layer-6-1"
        assert_same_end(whole, killed)
        assert killed.read("latest")[2]["prototypes"] == facts["prototypes"]
        assert (killed.path / "prototypes" / "prototypes.json").read_bytes() == table
    environments = [
        json.loads((folder.path / "environment.json").read_text()) for folder in folders
    ]
    starts = sum(len(environment["starts"]) for environment in environments)
    assert starts > KILLS // 2, "most kills fell into training, not before it"
    shutil.rmtree(tmp_path)  # what is left of a test is kept for a while, and this is much
