"""What follows training, for any run: evaluate, explain, report."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from protofast.cli.console import console, print_note, print_table
from protofast.data import Batches, Splits
from protofast.evaluation import Metrics, predict, write_evaluation
from protofast.explain import explain_run
from protofast.report import build_report
from protofast.training import LoadedModel, RunFolder, Settings, build_data


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, nothing elsewhere; call it with what is done, how much, of how much."""
    bars = Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(),
        transient=True,
        disable=not console().is_terminal,
    )
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, visible=done < total)

    with bars:
        yield report


def read_data(settings: Settings) -> Splits:
    """Open (or render) the run's images, with a bar."""
    with progress_bar() as report:
        return build_data(
            settings.data, progress=lambda done, total: report("reading images", done, total)
        )


def load(folder: RunFolder, checkpoint: str, device: torch.device) -> tuple[str, LoadedModel]:
    """A run's model and the name of the checkpoint it comes from."""
    name = folder.resolve(checkpoint)
    return name, folder.load_model(name, device=device)


def evaluate_run(folder: RunFolder, checkpoint: str, data: Splits, device: torch.device) -> Metrics:
    """Evaluate a checkpoint on the test images: writes `evaluation/`, prints the main numbers."""
    name, loaded = load(folder, checkpoint, device)
    batch_size = loaded.settings.training.test_batch_size
    with progress_bar() as report:
        predictions = predict(
            loaded.model,
            Batches(data.test, batch_size, device=device),
            progress=lambda done: report("test images", done, len(data.test)),
        )
    metrics = write_evaluation(folder.path, predictions, data.test, checkpoint=name)
    print_metrics(name, metrics)
    return metrics


def print_metrics(checkpoint: str, metrics: Metrics) -> None:
    """The main numbers as a table."""
    print_table(
        f"checkpoint {checkpoint}, {metrics.images} test images",
        ["", ""],
        [
            ["accuracy", f"{metrics.accuracy:.2%}"],
            ["balanced accuracy", f"{metrics.balanced_accuracy:.2%}"],
            ["AUROC", "-" if metrics.auroc is None else f"{metrics.auroc:.4f}"],
        ],
    )


def explain_and_report(
    folder: RunFolder, checkpoint: str, data: Splits, device: torch.device, **options: int
) -> Path:
    """Explain a checkpoint's prototypes and a sample of predictions, then write the report."""
    name, loaded = load(folder, checkpoint, device)
    with progress_bar() as report:
        explain_run(
            folder.path,
            loaded.model,
            data,
            checkpoint=name,
            prototypes=folder.read(name)[2]["prototypes"],
            progress=report,
            **options,
        )
    return build_report(folder.path)


def finish_run(folder: RunFolder, data: Splits, device: torch.device) -> Path:
    """Evaluate, explain and report the best checkpoint; the path of the report."""
    evaluate_run(folder, "best", data, device)
    path = explain_and_report(folder, "best", data, device)
    print_note(f"report: {path.resolve()}")
    return path
