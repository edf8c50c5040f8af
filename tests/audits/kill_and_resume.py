"""Run by test_audit_after_kill.py in a process of its own: audits, is killed, goes on.

Each attempt is a forked process, where all is imported already, ended by SIGKILL.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from dimming import Dimming, DimmingSettings, small_birds, small_model

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


def attempt(models: list[AuditedModel], images: ImageSet, out: Path) -> int:
    """Starts the audit, or goes on with it, in a new process; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        Noting.notes = out.with_suffix(".notes")
        audits = [
            Noting(DimmingSettings(unit=1)),
            Noting(DimmingSettings(protocol="released", unit=1, images=8)),
            RobustAccuracy(RobustAccuracySettings(steps=1, images=8)),
        ]
        code = 0 if run_audits(models, images, audits, out).finished else 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> bool:
    """Whether the process has ended by itself; exits if it failed."""
    done, status = os.waitpid(child, os.WNOHANG)
    if done and status != 0:
        raise SystemExit(f"an audit failed with status {status}")
    return done != 0


def units(out: Path) -> int:
    """How many units are on the disk."""
    return sum(1 for _ in out.glob("units/*/*/*.json"))


def killed_in_time(child: int, out: Path, more: int, patience: float) -> bool:
    """Kills the process so many seconds after so many more units; False if it ended before."""
    wanted = units(out) + more
    deadline = None if more else time.monotonic() + patience
    while deadline is None or time.monotonic() < deadline:
        if ended(child):
            return False
        if deadline is None and units(out) >= wanted:
            deadline = time.monotonic() + patience
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def killed_until_done(
    models: list[AuditedModel],
    images: ImageSet,
    out: Path,
    kills: int,
    everything: int,
    chance: random.Random,
) -> int:
    """Runs one audit to its end, killed on the way if it can be; returns how often it was."""
    # The moments are set by units seen, not by the clock, which a busy machine stretches. The last
    # ones fall into the tables, pictures and numbers that follow the units, or after the end.
    killed = 0
    for number in range(kills + LATE):
        before = units(out)
        left = everything - before
        more = min(chance.choice((0, 1, 2, 3)), left) if number < kills else left
        child = attempt(models, images, out)
        killed += killed_in_time(child, out, more, chance.uniform(0.0, 0.03 if more else 0.2))
        print(f"{out.name}: {units(out) - before} of {units(out)} units are new")
    child = attempt(models, images, out)
    while not ended(child):
        time.sleep(0.01)
    print(f"{out.name}: {killed} kills")
    return killed


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    images = small_birds(folder)
    models = [AuditedModel(name=name, model=small_model(seed)) for seed, name in enumerate("ab")]
    child = attempt(models, images, folder / "whole")
    while not ended(child):
        time.sleep(0.01)
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
