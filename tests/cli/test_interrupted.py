"""Ctrl-C and SIGTERM, at any moment: nothing is half written, and a run can go on."""

import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from commands import Answer, Place, command, start, until, wait
from copies import replace

LONG = ("--set", "training.schedule.epochs=1000", "--set", "training.schedule.warm_epochs=999")


def _until_line(process: "subprocess.Popen[str]", beginning: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(process.communicate())


def test_training_can_be_resumed(place: Place) -> None:
    signals = (signal.SIGINT, signal.SIGTERM)
    runs = [place.run.with_name(f"a {number.name} run") for number in signals]
    processes = [start("train", place.settings, "--out", run, "--no-report", *LONG) for run in runs]
    for process, number in zip(processes, signals, strict=True):
        _until_line(process, "warm-1 ")
        process.send_signal(number)
    for process, run in zip(processes, runs, strict=True):
        _assert_resumable(wait(process), run)


def _assert_resumable(answer: Answer, run: Path) -> None:
    assert answer.code == 130
    assert answer.err == ""
    last = answer.out.splitlines()[-1]
    assert last.startswith("interrupted after ")
    assert last.endswith(f"steps; go on with: protofast train --resume '{run}'")
    done = int(last.split()[2])
    assert done >= 2
    assert not list(run.rglob("*.tmp"))
    # What it says is what works; changing the length is allowed when one asks for it.
    shorter = (
        f"training.schedule.epochs={done + 2}",
        f"training.schedule.warm_epochs={done + 1}",
    )
    overrides = [part for text in shorter for part in ("--set", text)]
    answer = command("train", "--resume", run, *overrides, "--allow-changes")
    assert "resumed from checkpoint warm-" in answer.done()
    assert (run / "report.html").is_file()


def test_a_second_process_keeps_its_hands_off(place: Place) -> None:
    with (place.run / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = place.state()
        for name in ("train --resume", "project", "prune"):
            said = command(*name.split(), place.run).error
            assert said == f"another process is working on {place.run}; wait for it or stop it"
        assert place.state() == before
        for name in ("evaluate", "explain", "report"):  # which change nothing of the run itself
            command(name, place.run).done()
    command("project", place.run).done()


ROUNDS = 5
"""A busy machine may not look at an explanation before it is over: then another one starts."""


def _start_explaining(run: Path) -> "subprocess.Popen[str]":
    """A process that is explaining the run, or has ended before it was seen at work."""
    process = start("explain", run)
    until(process, lambda: list(run.glob(".explanations-*")) or process.poll() is not None)
    return process


def test_two_explanations_at_once(place: Place) -> None:
    for _ in range(ROUNDS):
        process = _start_explaining(place.run)
        at_work = process.poll() is None
        command("explain", place.run).done()
        answer = wait(process)
        assert answer.code == 0, answer
        command("report", place.run).done()
        assert not list(place.run.glob(".explanations-*"))
        if at_work:
            return
    raise AssertionError("no two explanations were made at once")


def test_an_interrupted_explanation_leaves_the_old_one(place: Place) -> None:
    for _ in range(ROUNDS):
        before = place.state()
        process = _start_explaining(place.run)
        process.send_signal(signal.SIGINT)
        answer = wait(process)
        if answer.code != 0:
            break
    assert answer.code == 130
    assert answer.error_line() == "interrupted"
    assert place.state() == before


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Ctrl-C arrives in this process."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGALRM, interrupt)
    # A test run that was started in the background may have been told to ignore Ctrl-C.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, heard)


# An interruption between opening a file and taking note of it leaves the file to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["evaluate", "explain", "prune", "report"])
def test_at_any_moment(place: Place, name: str) -> None:
    before = place.state()
    started = time.monotonic()
    command(name, place.run).done()
    usual = time.monotonic() - started
    done = place.state()
    seen: set[int] = set()
    shares = [0.1, 0.35, 0.6, 0.8, 0.95]
    while shares:
        share = shares.pop()
        _restore(place.run, before)
        answer = _interrupted(name, place.run, after=share * usual)
        seen.add(answer.code)
        assert answer.code in (0, 130)
        after = place.state()
        if answer.code == 130:
            assert answer.err in ("", "protofast: interrupted\n")
        # Removing the old explanations may be cut short; the next command goes on with it.
        whole = {file for file in after if not re.match(r"\.explanations-\d+-old/", file)}
        assert whole in (before.keys(), done.keys()), share
        if not shares and 130 not in seen:  # each time was faster by far than the first
            shares.append(share / 10)
    command(name, place.run).done()
    assert not list(place.run.glob(".explanations*"))


def _interrupted(name: str, run: Path, *, after: float) -> Answer:
    try:
        with _interrupted_after(after):
            return command(name, run)
    except KeyboardInterrupt:  # it fell before or after the command itself
        return Answer(130, "", "")


def _restore(run: Path, state: dict[str, bytes]) -> None:
    for file in run.rglob("*"):
        if file.is_file() and str(file.relative_to(run)) not in state:
            file.unlink()
    for name, content in state.items():
        file = run / name
        if not file.is_file() or file.read_bytes() != content:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace(file, content)
