"""What the commands do with audits: run them on trained runs, print the numbers, report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from protofast.audits import Audit, AuditResult, run_audits
from protofast.audits.runs import audited_models, run_names, shared_data
from protofast.cli.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    console,
    duration,
    print_error,
    print_note,
    print_path,
    print_table,
    print_warning,
)
from protofast.cli.runs import open_run, read_test_images
from protofast.report import write_audit_report

Entry = dict[str, Any]


def default_folder(runs: Sequence[Path], protocol: str) -> Path:
    """Where an audit goes that is not told: into the run, or beside several."""
    if len(runs) == 1:
        return runs[0] / "audits" / protocol
    return Path("audits") / "-vs-".join(run_names(runs))


def audit_and_report(
    runs: Sequence[Path],
    audits: Sequence[Audit[Any]],
    out: Path,
    *,
    checkpoint: str,
    seed: int,
    device: torch.device,
    again: str,
) -> int:
    """Audit runs, print the numbers and write the report; the exit code.

    Args:
        runs: The run folders.
        audits: What to measure.
        out: The audit folder.
        checkpoint: Which of each run.
        seed: Key of the random numbers.
        device: Where to compute.
        again: The command that goes on with an interrupted audit.
    """
    started = time.monotonic()
    folders = [open_run(run, checkpoint) for run in runs]
    settings = shared_data(folders)
    try:
        images = read_test_images(folders[0], settings)
        models = audited_models(
            folders, images, checkpoint=checkpoint, device=device, warn=print_warning
        )
        with _bar() as tell:
            result = run_audits(models, images, audits, out, seed=seed, progress=tell)
        report = write_audit_report(out)
    except KeyboardInterrupt:
        print_note(f"interrupted; what is done is kept; go on with: {again}")
        return EXIT_INTERRUPTED
    print_note(f"audited in {duration(time.monotonic() - started)}")
    _print_numbers(result)
    print_path("numbers", out / "audit.json")
    print_path("audit report", report.path)
    for text in report.problems:
        print_error(f"{out}: {text}")
    return EXIT_FAILED if report.problems else 0


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """One bar over all work, which says what is being done and how long it will take."""
    bars = Progress(
        TextColumn("{task.description:<48}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console(),
        transient=True,
        disable=not console().is_terminal,
        speed_estimate_period=300,
    )
    tasks: list[TaskID] = []
    before = 0

    def tell(what: str, done: int, total: int) -> None:
        nonlocal before
        if not tasks or done < before:  # the predictions are over, and the audits begin
            for task in tasks:
                bars.remove_task(task)
            tasks[:] = [bars.add_task(what, total=total, completed=done)]
        bars.update(tasks[0], description=what, completed=done, total=total)
        before = done

    with bars:
        yield tell


def _print_numbers(result: AuditResult) -> None:
    """A table of each audit under each protocol, the models side by side."""
    names = [model["name"] for model in result.summary["models"]]
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in result.summary["audits"]:
        groups.setdefault((entry["title"], entry["protocol"]), []).append(entry)
    for (title, protocol), entries in groups.items():
        rows: dict[str, list[str]] = {}
        for entry in entries:
            for number in entry["numbers"]:
                cells = rows.setdefault(number["label"], [""] * len(names))
                cells[entry["model"]] = _said(number)
        listed = [[label, *cells] for label, cells in rows.items()]
        print_table(f"{title} ({protocol})", ["", *names], listed)


def _said(number: Entry) -> str:
    """`97.5 % [92.0, 99.1]`, or a dash where nothing could be measured."""
    if number["value"] is None:
        return "-"
    unit = f" {number['unit']}" if number["unit"] else ""
    text = f"{_short(number['value'])}{unit}"
    if number["low"] is None or number["high"] is None:
        return text
    return f"{text} [{_short(number['low'])}, {_short(number['high'])}]"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
