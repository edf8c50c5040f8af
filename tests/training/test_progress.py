"""What a run says, on a terminal and elsewhere."""

import io
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from protofast.data import Splits
from protofast.training import Settings, train
from protofast.training.progress import Bars, Lines, Silence, for_terminal, summary


def test_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin(total=10, done=0)
    lines.start("warm-0", total=10)
    assert not lines.wants_numbers()
    lines.advance(5)
    lines.finish("warm-0 done")
    lines.say("careful")
    lines.end()
    assert stream.getvalue() == "warm-0 done\ncareful\n"


def test_pytest_captures_output_so_it_is_no_terminal() -> None:
    assert isinstance(for_terminal(), Lines)


def test_bars_show_loss_accuracy_speed_and_time_left() -> None:
    from rich.console import Console

    stream = io.StringIO()
    bars = Bars(Console(file=stream, force_terminal=True, width=80))
    bars.begin(total=200, done=50)
    bars.start("joint-3", total=100, done=0)
    assert bars.wants_numbers()
    bars.advance(50, loss=1.2345, accuracy=0.5)
    assert not bars.wants_numbers(), "a few times a second is enough"
    bars.advance(50)
    bars.say("[odd] remark")
    bars.finish("joint-3 done [x]")
    bars.end()
    bars.end()
    text = stream.getvalue()
    for part in (
        "joint-3",
        "loss 1.234",
        "train 50.0%",
        "images/s",
        "joint-3 done [x]",
        "[odd]",
    ):
        assert part in text
    assert "whole run" in text


def test_a_summary_of_every_kind_of_step() -> None:
    test = {"accuracy": 0.5}
    epoch = {"loss": 1.0, "accuracy": 0.25, "images_per_second": 99.6}
    assert summary("warm-0", epoch, None).split() == [
        *("warm-0", "loss", "1.000", "train", "25.0%", "100", "images/s")
    ]
    assert "test  50.0%" in summary("project-1", {"moved_mean": 0.5}, test)


class _Count(Silence):
    """Adds up what the run's bar would show."""

    def __init__(self, stop: threading.Event, calls: int) -> None:
        self.stop, self.calls = stop, calls
        self.total, self.done, self.counts = 0, 0, True

    def begin(self, *, total: int, done: int) -> None:
        self.total, self.done = total, done

    def start(self, label: str, *, total: int, done: int = 0, counts: bool = True) -> None:
        self.counts = counts

    def advance(self, images: int, **_: object) -> None:
        self.done += images * self.counts
        self.calls -= 1
        if self.calls == 0:
            self.stop.set()


@pytest.mark.parametrize("from_scratch", [False, True])
def test_the_run_is_over_when_its_bar_is_full(
    from_scratch: bool,
    tiny: Callable[..., Settings],
    scratch: tuple[str, ...],
    birds: Splits,
    tmp_path: Path,
) -> None:
    settings = tiny(*(scratch if from_scratch else ()))
    # Stopped within a joint epoch and, where its images are plain, within the last layer's stage.
    last = None
    for start, calls in enumerate((9, 13 if from_scratch else 1000, 1000)):
        stop = threading.Event()
        count = _Count(stop, calls)
        result = train(
            settings, tmp_path / "run", resume=start > 0, data=birds, stop=stop, progress=count
        )
        assert last is None or last.total == count.total
        last = count
        if result.finished:
            break
    assert result.finished
    assert start == 1 + from_scratch
    assert last is not None
    assert last.done == last.total
