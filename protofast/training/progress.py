"""What a run says while it goes on: a small interface, silence, and bars for a terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBars
    from rich.progress import TaskID

_EVERY = 0.1  # seconds between two updates of a bar


class Progress(Protocol):
    """What training tells about itself. Work is counted in images, those of all ranks."""

    def begin(self, *, total: int, done: int) -> None:
        """The run starts or goes on; ``total`` and ``done`` images over all its steps."""

    def start(self, label: str, *, total: int, done: int = 0, counts: bool = True) -> None:
        """A step starts: an epoch of a stage, a projection or a test, over ``total`` images.

        Where ``counts`` is false they take next to no time and are not among those of the run.
        """

    def wants_numbers(self) -> bool:
        """Whether to look at loss and accuracy now; on a GPU that waits for it."""

    def advance(
        self, images: int, *, loss: float | None = None, accuracy: float | None = None
    ) -> None:
        """So many more images are done; numbers are means over the epoch so far."""

    def finish(self, line: str) -> None:
        """The step is over; ``line`` sums it up."""

    def say(self, text: str) -> None:
        """A remark or warning, one line."""

    def end(self) -> None:
        """Nothing more will come. May be called twice."""


class Silence:
    """Says nothing."""

    def begin(self, *, total: int, done: int) -> None:
        """Nothing."""

    def start(self, label: str, *, total: int, done: int = 0, counts: bool = True) -> None:
        """Nothing."""

    def wants_numbers(self) -> bool:
        """Never."""
        return False

    def advance(
        self, images: int, *, loss: float | None = None, accuracy: float | None = None
    ) -> None:
        """Nothing."""

    def finish(self, line: str) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Lines(Silence):
    """A line per finished step, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stdout if stream is None else stream

    def finish(self, line: str) -> None:
        """Prints the line."""
        print(line, file=self.stream, flush=True)

    def say(self, text: str) -> None:
        """Prints the remark."""
        print(text, file=self.stream, flush=True)


class Bars:
    """Two bars on a terminal: the step (loss, accuracy, images/s) and the run (time left)."""

    def __init__(self, console: Console | None = None) -> None:
        if console is None:
            from rich.console import Console

            console = Console()
        self.console = console
        self._bars: RichBars | None = None
        self._run: TaskID | None = None
        self._step: TaskID | None = None
        self._looked = 0.0
        self._images = 0
        self._begun = 0.0
        self._pending = 0
        self._counts = True

    def begin(self, *, total: int, done: int) -> None:
        """Shows the run's bar."""
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            transient=True,
        )
        self._run = self._bars.add_task("whole run", total=total, completed=done, numbers="")
        self._bars.start()

    def start(self, label: str, *, total: int, done: int = 0, counts: bool = True) -> None:
        """Shows the step's bar."""
        if self._bars is None or self._run is None:
            return
        self._bars.update(self._run, advance=self._pending if self._counts else 0)
        self._counts = counts
        if self._step is not None:
            self._bars.remove_task(self._step)
        self._step = self._bars.add_task(label, total=total, completed=done, numbers="")
        self._images, self._pending, self._begun = 0, 0, time.monotonic()

    def wants_numbers(self) -> bool:
        """A few times a second."""
        return time.monotonic() - self._looked >= _EVERY

    def advance(
        self, images: int, *, loss: float | None = None, accuracy: float | None = None
    ) -> None:
        """Moves both bars."""
        self._images += images
        self._pending += images
        if self._bars is None or self._step is None or self._run is None:
            return
        now = time.monotonic()
        if now - self._looked < _EVERY:
            return
        self._looked = now
        rate = self._images / max(now - self._begun, 1e-6)
        numbers = [f"{rate:.0f} images/s"]  # short: all of it must fit into 80 columns
        if loss is not None:
            numbers.insert(0, f"loss {loss:.3f}")
        if accuracy is not None:
            numbers.insert(1, f"train {accuracy:.1%}")
        self._bars.update(self._step, advance=self._pending, numbers="  ".join(numbers))
        self._bars.update(self._run, advance=self._pending if self._counts else 0)
        self._pending = 0

    def finish(self, line: str) -> None:
        """Prints the line above the bars."""
        if self._bars is not None and self._run is not None:
            self._bars.update(self._run, advance=self._pending if self._counts else 0)
            self._pending = 0
        self.console.print(line, markup=False, highlight=False)

    def say(self, text: str) -> None:
        """Prints the remark above the bars."""
        self.console.print(text, markup=False, highlight=False, style="yellow")

    def end(self) -> None:
        """Takes the bars away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def for_terminal() -> Progress:
    """Bars where standard output is a terminal, a line per step elsewhere."""
    return Bars() if sys.stdout.isatty() else Lines()


def summary(name: str, row: dict[str, Any], test: dict[str, Any] | None) -> str:
    """One line on a finished epoch."""
    words = [f"{name:<16}"]
    if "loss" in row:
        words.append(f"loss {row['loss']:7.3f}  train {row['accuracy']:6.1%}")
    if "moved_mean" in row:
        words.append(f"prototypes moved {row['moved_mean']:.3f} on average")
    if test is not None:
        words.append(f"test {test['accuracy']:6.1%}")
    if row.get("images_per_second"):
        words.append(f"{row['images_per_second']:.0f} images/s")
    return "  ".join(words)
