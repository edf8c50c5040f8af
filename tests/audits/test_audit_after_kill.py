"""The hard promise: an audit killed at any moment and started again ends in the same audit.json."""

import json
from collections import Counter
from pathlib import Path

from scripts import run_script

KILLS = 12


def _content(folder: Path) -> str:
    text = (folder / "audit.json").read_text()
    assert json.loads(text)["times"]["seconds"], "what is cut off are the times alone"
    return text[: text.index(' "times": {')]


def _files(folder: Path, *patterns: str) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for pattern in patterns
        for file in folder.glob(pattern)
        if file.is_file()
    }


def test_kills_at_any_moment_change_no_byte(tmp_path: Path) -> None:
    said = run_script(Path(__file__).with_name("kill_and_resume.py"), tmp_path, KILLS)
    kills = int(said.splitlines()[-1].split()[0])
    assert kills >= KILLS, said
    whole = tmp_path / "whole"
    made = ("settings.toml", "tables/*", "pictures/**/*.png")
    expected = _files(whole, *made)
    assert len(expected) > 10
    folders = sorted(folder for folder in tmp_path.glob("killed-*") if folder.is_dir())
    for killed in folders:
        assert _content(killed) == _content(whole)
        assert _files(killed, *made) == expected
        assert not list(killed.rglob("*.tmp"))
    # What is on the disk is not done again: a kill costs the unit under way, no more.
    units = set((tmp_path / "whole.notes").read_text().splitlines())
    measured = Counter(
        line for folder in folders for line in folder.with_suffix(".notes").read_text().splitlines()
    )
    assert set(measured) == units
    assert measured.total() <= len(units) * len(folders) + kills
    new = [line for line in said.splitlines() if "units are new" in line]
    assert len(set(new)) > 4, "kills fell into different parts of the audit"
