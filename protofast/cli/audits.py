"""What the commands do with audits: run them on trained runs, print the numbers, report."""

from __future__ import annotations

import contextlib
import json
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
from protofast.audits.computed import images_at_once
from protofast.audits.files import AuditFolder
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
from protofast.cli.errors import remedy_for_memory
from protofast.cli.images import keep_out_of_data
from protofast.cli.runs import open_run, read_test_images
from protofast.errors import SettingsError
from protofast.files import sha256_of
from protofast.report import write_audit_report
from protofast.training import RunFolder
from protofast.training.settings import DataSettings

Entry = dict[str, Any]


def default_folder(runs: Sequence[Path], protocol: str) -> Path:
    """Where an audit goes that is not told: into the run, or where the user is for several."""
    if len(runs) == 1:
        return runs[0] / "audits" / protocol
    return Path("audits") / "-vs-".join(run_names(runs)) / protocol


def audit_and_report(
    runs: Sequence[Path],
    audits: Sequence[Audit[Any]],
    out: Path,
    *,
    checkpoint: str,
    seed: int,
    device: torch.device,
    again: Callable[[int | None], str],
    batch_size: int | None = None,
    replace: bool = False,
    place: DataSettings | None = None,
) -> int:
    """Audit runs, print the numbers and write the report; the exit code.

    Args:
        runs: The run folders.
        audits: What to measure.
        out: The audit folder.
        checkpoint: Which of each run.
        seed: Key of the random numbers.
        device: Where to compute.
        again: The command that goes on with an interrupted audit, in batches of so many images.
        batch_size: Images that go through a model at once, at most; None for the device's number.
        replace: Whether numbers of other audits, models or seeds may be replaced in `out`.
        place: Where the images of all runs are now; None: where they were trained.

    Raises:
        SettingsError: `out` is among the images, or holds numbers that would be lost.
        MemoryShortError: There is too little memory.
    """
    started = time.monotonic()
    folders = [open_run(run, checkpoint) for run in runs]
    _keep_out_of_data(out, folders, place)
    settings = shared_data(folders, place)
    if not replace:
        _check_replaced(out, folders, audits, checkpoint, seed)
    try:
        with remedy_for_memory(_too_many_images(folders[0])):
            images = read_test_images(folders[0], settings)
        models = audited_models(
            folders, images, checkpoint=checkpoint, device=device, warn=print_warning
        )
        at_once = _at_once(images_at_once(device, batch_size), audits, len(images))
        with remedy_for_memory(lambda: _smaller(at_once, again)), _bar() as tell:
            result = run_audits(
                models,
                images,
                audits,
                out,
                seed=seed,
                batch_size=batch_size,
                progress=tell,
                warn=print_warning,
            )
        with AuditFolder.open(out).lock():
            report = write_audit_report(out)
    except KeyboardInterrupt:
        print_note(f"interrupted; what is done is kept; go on with: {again(batch_size)}")
        return EXIT_INTERRUPTED
    print_note(f"audited in {duration(time.monotonic() - started)}")
    _print_numbers(result)
    print_path("numbers", out / "audit.json")
    print_path("audit report", report.path)
    for text in report.problems:
        print_error(f"{out}: {text}")
    return EXIT_FAILED if report.problems else 0


def _at_once(most: int, audits: Sequence[Audit[Any]], there: int) -> int:
    """How many images go through a model at once, of which there may be fewer than are allowed."""
    subsets = [getattr(audit.settings, "images", None) or there for audit in audits]
    return min(most, there, max(subsets))


def _smaller(images: int, again: Callable[[int], str]) -> str:
    """What to do where so many images at once took too much memory."""
    kept = "what is done is kept; "
    if images <= 1:
        remedy = "one image at a time is too much already: use another device, or a smaller model"
        return kept + remedy
    return f"{kept}go on in smaller batches with: {again(images // 2)}"


def _too_many_images(folder: RunFolder) -> str:
    """What to do where the test images take too much memory."""
    if not folder.settings.data.in_memory:
        return "not even the test images can be read; free some memory"
    return (
        "the test images are kept in memory; to read each when it is needed, write in_memory = "
        f"false into {folder.path / 'settings.toml'} ([data])"
    )


def _keep_out_of_data(out: Path, folders: Sequence[RunFolder], place: DataSettings | None) -> None:
    """Pictures below a class folder would be taken for images; in a run that is there, so be it."""
    for folder in folders:
        try:
            keep_out_of_data(out, folder.settings.data if place is None else place)
        except SettingsError as error:
            if not out.resolve().is_relative_to(folder.path.resolve()):
                raise
            print_warning(str(error))


def _check_replaced(
    out: Path,
    folders: Sequence[RunFolder],
    audits: Sequence[Audit[Any]],
    checkpoint: str,
    seed: int,
) -> None:
    """Numbers that are in a folder are replaced by those of the same models and audits alone.

    Raises:
        SettingsError: `out` has numbers of other models, seeds or audits.
    """
    try:
        said = json.loads((out / "audit.json").read_bytes())
        weights = [model["checkpoint_sha256"] for model in said["models"]]
        before, there = said["seed"], [(each["audit"], each["protocol"]) for each in said["audits"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # no audit, or nothing that could be lost
    remedy = "choose another folder (--out), or delete it"
    now = [
        sha256_of(folder.checkpoints / f"{folder.resolve(checkpoint)}.safetensors")
        for folder in folders
    ]
    if weights != now:
        raise SettingsError(f"{out} holds an audit of other models or checkpoints; {remedy}")
    if before != seed:
        raise SettingsError(f"{out} holds an audit with seed {before}, not {seed}; {remedy}")
    wanted = [(audit.name, audit.settings.protocol) for audit in audits]
    others = dict.fromkeys(
        f"{name} ({protocol})" for name, protocol in there if (name, protocol) not in wanted
    )
    if others:
        raise SettingsError(
            f"{out} holds {', '.join(others)} too, which would no longer be in its report; ask for "
            f"these as well, {remedy}"
        )


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
