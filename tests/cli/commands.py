"""Running commands, in this process and in one of their own, and what they answer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from protofast.cli.app import app


class Answer(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a failed command writes on standard error."""
        assert self.code in (1, 2), self
        return self.error_line()

    def error_line(self) -> str:
        """The one line on standard error."""
        (line,) = self.err.splitlines()
        assert line.startswith("protofast: "), self.err
        return line.removeprefix("protofast: ")

    def done(self) -> str:
        """Standard output of a command that succeeded without complaint."""
        assert self.code == 0, self
        assert self.err == ""
        return self.out


class Place(NamedTuple):
    """A copy of the run and of its images."""

    run: Path
    photos: Path
    settings: Path

    def photo(self, side: str = "train", number: int = 0) -> Path:
        return sorted((self.photos / side).rglob("*.jpg"))[number]

    def state(self) -> dict[str, bytes]:
        """Content of every file of the run."""
        files = (file for file in self.run.rglob("*") if file.is_file())
        found = {str(file.relative_to(self.run)): file.read_bytes() for file in files}
        found.pop(".lock", None)  # an empty file that the first lock leaves
        return found


def command(*arguments: object) -> Answer:
    """Runs a command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


def start(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    """Starts a command in a process of its own, whose output can be read while it runs.

    It hears Ctrl-C: a shell lets what it starts in the background, such as a test run, ignore it.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "protofast.cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def until(process: "subprocess.Popen[str]", condition: Callable[[], object]) -> None:
    """Waits for what a running process will bring about."""
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait(process: "subprocess.Popen[str]") -> Answer:
    """The answer of a command in a process of its own."""
    out, err = process.communicate(timeout=200)
    return Answer(process.returncode, out, err)
