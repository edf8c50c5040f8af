"""Run by test_resume_after_kill.py in a process of its own: trains, is killed, resumes."""

import random
import sys
from pathlib import Path

import torch
from killing import attempt, ended, killed_in_time

from protofast.data import Splits
from protofast.training import RunFolder, Settings, build_data, load_settings, train

ROUNDS = 6  # runs at most, until there were enough kills


class Checkpoints:
    """Counts how often the pointer to the latest checkpoint was seen to be replaced."""

    def __init__(self, latest: Path) -> None:
        self.latest, self.seen = latest, 0
        self.stamp = self._stamp()

    def _stamp(self) -> int:
        try:
            return self.latest.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def __call__(self) -> int:
        stamp = self._stamp()
        if stamp != self.stamp:
            self.stamp, self.seen = stamp, self.seen + 1
        return self.seen

    def __str__(self) -> str:
        return self.latest.read_text().strip() if self.latest.exists() else "the start"


def start(settings: Settings, path: Path, data: Splits) -> int:
    """Starts or resumes the run in a new process; returns its id."""
    return attempt(lambda: train(settings, path, resume=path.exists(), data=data).finished)


def killed_until_done(
    settings: Settings, path: Path, data: Splits, kills: int, chance: random.Random
) -> int:
    """Trains one run to its end, killed on the way as often as asked for, if it lasts so long."""
    checkpoints = Checkpoints(path / "checkpoints" / "latest")
    for killed in range(kills):
        child = start(settings, path, data)
        more, patience = chance.choice((0, 1, 1, 2, 3)), chance.uniform(0.0, 0.06)
        if not killed_in_time(child, checkpoints, more=more, patience=patience):
            return killed
        print(f"{path.name}: killed at {checkpoints}")
    ended(start(settings, path, data), wait=True)
    return kills


def main(settings_file: Path, folder: Path, kills: int, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    settings = load_settings(settings_file, overrides)
    data = build_data(settings.data, threads=1)
    ended(start(settings, folder / "whole", data), wait=True)
    finished = RunFolder.open(folder / "whole")
    for name in finished.names():  # what is compared is the last; the others fill the disk
        if name not in (finished.pointer("latest"), finished.pointer("best")):
            finished.remove(name)
    chance = random.Random(0)
    killed = 0
    # On a busy machine a run may end before it was killed often enough: then another starts.
    for number in range(ROUNDS):
        path = folder / f"killed-{number}"
        killed += killed_until_done(settings, path, data, kills - killed, chance)
        if killed == kills:
            break
    print(f"{killed} kills")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
