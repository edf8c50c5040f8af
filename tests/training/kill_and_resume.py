"""Run by test_resume_after_kill.py in a process of its own: trains, is killed, resumes.

Each attempt is a forked process, where all is imported already, ended by SIGKILL.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from protofast.data import Splits
from protofast.training import RunFolder, Settings, build_data, load_settings, train


def attempt(settings: Settings, path: Path, data: Splits) -> int:
    """Starts or resumes the run in a new process; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = 0 if train(settings, path, resume=path.exists(), data=data).finished else 2
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
        raise SystemExit(f"a run failed with status {status}")
    return done != 0


def stamp(latest: Path) -> int:
    """When the pointer to the latest checkpoint was last replaced; 0 before there is one."""
    try:
        return latest.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def killed_in_time(child: int, latest: Path, checkpoints: int, patience: float) -> bool:
    """Kills the process so many seconds after so many checkpoints; False if it ended before."""
    seen = stamp(latest)
    deadline = None if checkpoints else time.monotonic() + patience
    while deadline is None or time.monotonic() < deadline:
        if ended(child):
            return False
        if stamp(latest) != seen and deadline is None:
            seen, checkpoints = stamp(latest), checkpoints - 1
            if checkpoints == 0:
                deadline = time.monotonic() + patience
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main(settings_file: Path, folder: Path, kills: int, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    settings = load_settings(settings_file, overrides)
    data = build_data(settings.data, threads=1)
    child = attempt(settings, folder / "whole", data)
    while not ended(child):
        time.sleep(0.01)
    finished = RunFolder.open(folder / "whole")
    for name in finished.names():  # what is compared is the last; the others fill the disk
        if name not in (finished.pointer("latest"), finished.pointer("best")):
            finished.remove(name)
    # The moments are set by checkpoints seen, not by the clock, which a busy machine stretches.
    chance = random.Random(0)
    latest = folder / "killed" / "checkpoints" / "latest"
    for number in range(kills):
        child = attempt(settings, folder / "killed", data)
        wait = chance.choice((0, 1, 1, 2, 3)), chance.uniform(0.0, 0.06)
        if not killed_in_time(child, latest, *wait):
            raise SystemExit(f"the run was over after {number} kills; make it longer")
        print("killed at", latest.read_text().strip() if stamp(latest) else "the start")
    child = attempt(settings, folder / "killed", data)
    while not ended(child):
        time.sleep(0.01)
    print(f"{kills} kills")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
