"""Run by test_audit_after_kill.py in a process of its own: audits, is killed, goes on."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from dimming import Dimming, DimmingSettings, small_birds, small_model
from killing import attempt, ended, killed_in_time

from protofast.audits import AuditedModel, Subject, run_audits
from protofast.audits.audit import Row
from protofast.audits.robust_accuracy import RobustAccuracy, RobustAccuracySettings
from protofast.data import ImageSet


class Noting(Dimming):
    """Adds a line to a file for every unit that was measured."""

    notes: Path

    def measure(self, subject: Subject, positions: Sequence[int]) -> list[Row]:
        rows = super().measure(subject, positions)
        with self.notes.open("a") as file:
            file.write(f"{subject.name} {self.settings.protocol} {list(positions)}\n")
        return rows


ROUNDS = 6  # audits at most, until there were enough kills
LATE = 5  # further attempts to kill it, when all units are there


def start(models: list[AuditedModel], images: ImageSet, out: Path) -> int:
    """Starts the audit, or goes on with it, in a new process; returns its id."""

    def work() -> bool:
        Noting.notes = out.with_suffix(".notes")
        audits = [
            Noting(DimmingSettings(unit=1)),
            Noting(DimmingSettings(protocol="released", unit=1, images=8)),
            RobustAccuracy(RobustAccuracySettings(steps=1, images=8)),
        ]
        return run_audits(models, images, audits, out, batch_size=1).finished

    return attempt(work)


def units(out: Path) -> int:
    """How many units are on the disk."""
    return sum(1 for _ in out.glob("units/*/*/*.json"))


def killed_until_done(
    models: list[AuditedModel],
    images: ImageSet,
    out: Path,
    kills: int,
    everything: int,
    chance: random.Random,
) -> int:
    """Runs one audit to its end, killed on the way if it can be; returns how often it was."""
    # The last moments fall into the tables, pictures and numbers that follow the units, or after
    # the end.
    killed = 0
    for number in range(kills + LATE):
        before = units(out)
        left = everything - before
        more = min(chance.choice((0, 1, 2, 3)), left) if number < kills else left
        child = start(models, images, out)
        patience = chance.uniform(0.0, 0.03 if more else 0.2)
        killed += killed_in_time(child, lambda: units(out), more=more, patience=patience)
        print(f"{out.name}: {units(out) - before} of {units(out)} units are new")
    ended(start(models, images, out), wait=True)
    print(f"{out.name}: {killed} kills")
    return killed


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    images = small_birds(folder)
    models = [AuditedModel(name=name, model=small_model(seed)) for seed, name in enumerate("ab")]
    ended(start(models, images, folder / "whole"), wait=True)
    everything = units(folder / "whole")
    chance = random.Random(0)
    killed = 0
    # On a busy machine an audit may end before it was killed often enough: then another starts.
    for number in range(ROUNDS):
        killed += killed_until_done(
            models, images, folder / f"killed-{number}", kills, everything, chance
        )
        if killed >= kills:
            break
    print(f"{killed} kills of {everything} units")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
