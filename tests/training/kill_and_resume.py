"""Run by test_resume_after_kill.py in a process of its own: trains, is killed, resumes.

Each attempt is a forked process (all is imported already, so it costs no start-up), ended by SIGKILL.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from protofast.data import Splits
from protofast.training import Settings, build_data, load_settings, train


def attempt(settings: Settings, path: Path, data: Splits) -> int:
    """Starts or resumes the run in a new process; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = 0 if train(settings, path, resume=path.exists(), data=data).finished else 2
    finally:
        os._exit(code)


def ended(child: int) -> bool:
    """Whether the process has ended by itself; exits if it failed."""
    done, status = os.waitpid(child, os.WNOHANG)
    if done and status != 0:
        raise SystemExit(f"a run failed with status {status}")
    return done != 0


def main(settings_file: Path, folder: Path, kills: int, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    settings = load_settings(settings_file, overrides)
    data = build_data(settings.data, threads=1)
    started = time.monotonic()
    child = attempt(settings, folder / "whole", data)
    while not ended(child):
        time.sleep(0.01)
    duration = time.monotonic() - started
    chance = random.Random(0)
    killed, over = 0, False
    while not over:
        child = attempt(settings, folder / "killed", data)
        # Ten times this is less than the run lasts, since each start costs some of it.
        patience = chance.uniform(0.02, 2.2 * duration / kills) if killed < kills else 1e9
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and not (over := ended(child)):
            time.sleep(0.002)
        if over:
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
        latest = folder / "killed" / "checkpoints" / "latest"
        print("killed at", latest.read_text().strip() if latest.exists() else "start", flush=True)
    print(
        f"{killed} kills, {duration:.1f} s undisturbed, {time.monotonic() - started:.1f} s in all"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
