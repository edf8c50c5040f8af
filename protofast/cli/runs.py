"""What the commands do with runs: open, train, evaluate, explain, report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import distributed

from protofast.attacks import FastAdversarial
from protofast.cli.console import (
    EXIT_INTERRUPTED,
    duration,
    print_note,
    print_path,
    print_table,
    print_warning,
    progress_bar,
)
from protofast.cli.errors import UnfinishedRunError, may_go_on, resume_command
from protofast.data import Batches, ImageSet, Splits
from protofast.errors import DataError, SettingsError
from protofast.evaluation import Metrics, predict, write_evaluation
from protofast.explain import explain_run
from protofast.report import build_report
from protofast.training import (
    LoadedModel,
    Result,
    RunFolder,
    Settings,
    build_data,
    check_changes,
    check_classes,
    check_start,
    for_terminal,
    other_images,
)
from protofast.training import train as run_training
from protofast.training.settings import DataSettings, TrainingSettings
from protofast.training.settings_file import PLACES


def open_run(path: Path, checkpoint: str | None = None, *, change: bool = False) -> RunFolder:
    """A run folder; whatever can be found wrong with it is found before images are read.

    Args:
        path: The folder.
        checkpoint: One that must be there.
        change: Whether the run is to be changed, so that no other process may work on it.
    """
    folder = RunFolder.open(path)
    if checkpoint is not None:
        folder.resolve(checkpoint)
    if change and os.environ.get("RANK", "0") == "0":  # torchrun's other ranks would be in the way
        with folder.lock():
            pass
    return folder


def place_of_images(folder: RunFolder, moved: Path | None) -> DataSettings:
    """The data settings of a run, with its images where they are now.

    Args:
        folder: The run.
        moved: What ``--data`` says; None: where they were trained.

    Raises:
        SettingsError: One folder does not say where they are.
    """
    settings = folder.settings.data
    if moved is None:
        return settings
    if settings.root is None:
        raise SettingsError(f"the images of {folder.path} are rendered: leave --data out")
    if settings.test_root is not None:
        raise SettingsError(
            f"the images of {folder.path} are in two folders, and --data names one: write where "
            f"they are now into {folder.path / 'settings.toml'} (data.root, data.test_root)"
        )
    places = {"root": str(moved.absolute())}
    groups = None if settings.groups is None else Path(settings.groups)
    if groups is not None and groups.is_relative_to(settings.root):  # and so moved with it
        places["groups"] = str(moved.absolute() / groups.relative_to(settings.root))
    return settings.model_copy(update=places)


def read_data(folder: RunFolder, moved: Path | None = None) -> Splits:
    """Open (or render) the images of a run that is there, with a bar.

    Args:
        folder: The run.
        moved: Where its images are now, if not where they were trained.
    """
    settings = place_of_images(folder, moved)
    with _remedy_for_place(settings, folder), progress_bar() as report:
        return build_data(
            settings.model_copy(update={"leaks": "allow"}),  # training has looked for them
            progress=lambda done, total: report("reading images", done, total),
        )


def read_test_images(folder: RunFolder, settings: DataSettings | None = None) -> ImageSet:
    """Open (or render) the test images of a run alone, with a bar.

    Args:
        folder: The run.
        settings: Which images; by default the run's.
    """
    if settings is None:
        settings = folder.settings.data
    lazy = settings.model_copy(update={"leaks": "allow", "in_memory": False})
    with _remedy_for_place(settings, folder), progress_bar() as report:
        test = build_data(
            lazy, progress=lambda done, total: report("rendering images", done, total)
        ).test
        if not settings.in_memory:
            return test
        return test.cached(
            threads=torch.get_num_threads(),
            progress=lambda done, total: report("reading images", done, total),
        )


def load(folder: RunFolder, checkpoint: str, device: torch.device) -> tuple[str, LoadedModel]:
    """A run's model and the name of the checkpoint it comes from."""
    name = folder.resolve(checkpoint)
    return name, folder.load_model(name, device=device)


def train_and_report(
    settings: Settings,
    path: Path,
    *,
    resume: bool,
    allow_changes: bool = False,
    report: bool = True,
    device: torch.device,
    again: str | None = None,
) -> int:
    """Train, then evaluate, explain and report; the exit code.

    Args:
        settings: What to train.
        path: The run folder.
        resume: Whether it is there already.
        allow_changes: Resume even if `settings` differ from the folder's.
        report: Whether to evaluate, explain and report at the end.
        device: Where to compute.
        again: The command that goes on with an interrupted run, if that does more than train it;
            by default training's.
    """
    folder, of_many, again = None, again is not None, again or resume_command(path)
    # Before the images are read, which may take a while.
    if resume:
        folder = open_run(path, change=True)
        check_changes(folder, settings, allow=allow_changes)
    else:
        RunFolder.check_free(path)
        check_start(settings.model)
    option = "--data" if of_many else "--set data.root=FOLDER"
    with _remedy_for_place(settings.data, folder, option), progress_bar() as tell:
        data = build_data(
            settings.data, progress=lambda done, total: tell("reading images", done, total)
        )
    try:
        result = run_training(
            settings,
            path,
            resume=resume,
            allow_changes=allow_changes,
            device=device,
            progress=for_terminal(),
            perturb=perturbation(settings.training),
            data=data,
        )
    except KeyboardInterrupt:  # the second one, which does not wait for the next batch
        print_note(f"interrupted; go on with: {again}")
        return EXIT_INTERRUPTED
    except Exception as error:
        if may_go_on(error) and (path / "settings.toml").is_file():
            raise UnfinishedRunError(error, again) from error
        raise
    if not result.finished:
        print_note(
            f"interrupted after {result.steps_done} of {result.steps} steps; go on with: {again}"
        )
        return EXIT_INTERRUPTED
    if not _is_first_rank():
        return 0
    _tell_end(result)
    return _finish(result.folder, data, device, again) if report else 0


def perturbation(training: TrainingSettings) -> FastAdversarial | None:
    """What alters the training images as the settings ask, or None if they do not."""
    adversarial = training.adversarial
    if adversarial.method == "none":
        return None
    return FastAdversarial(
        epsilon=adversarial.epsilon, step_size=adversarial.step_size, seed=training.seed
    )


def evaluate_run(
    folder: RunFolder, checkpoint: str, test: ImageSet, device: torch.device
) -> Metrics:
    """Evaluate a checkpoint on the test images: writes `evaluation/`, prints the main numbers."""
    name, loaded = load(folder, checkpoint, device)
    check_classes(loaded.classes, test.classes)
    _warn_of_other_images(loaded, test=test)
    training = loaded.settings.training
    with progress_bar() as report:
        predictions = predict(
            loaded.model,
            Batches(test, training.test_batch_size, workers=training.workers, device=device),
            progress=lambda done: report("test images", done, len(test)),
        )
    metrics = write_evaluation(folder.path, predictions, test, checkpoint=name)
    print_table(
        f"checkpoint {name}, {metrics.images} test images",
        ["", ""],
        [
            ["accuracy", f"{metrics.accuracy:.2%}"],
            ["balanced accuracy", f"{metrics.balanced_accuracy:.2%}"],
            ["AUROC", "-" if metrics.auroc is None else f"{metrics.auroc:.4f}"],
        ],
    )
    return metrics


def explain_and_report(
    folder: RunFolder, checkpoint: str, data: Splits, device: torch.device, **options: int
) -> Path:
    """Explain a checkpoint's prototypes and a sample of predictions, then write the report."""
    name, loaded = load(folder, checkpoint, device)
    check_classes(loaded.classes, data.train.classes)
    _warn_of_other_images(loaded, train=data.train, project=data.project, test=data.test)
    with progress_bar() as report:
        explain_run(
            folder.path,
            loaded.model,
            data,
            checkpoint=name,
            prototypes=loaded.prototypes,
            progress=report,
            **options,
        )
    return build_report(folder.path)


def _warn_of_other_images(loaded: LoadedModel, **sets: ImageSet) -> None:
    others = other_images(loaded.images, **sets)
    if others:
        print_warning(others)


def _finish(folder: RunFolder, data: Splits, device: torch.device, again: str) -> int:
    """Evaluate, explain and report the best checkpoint; the exit code."""
    try:
        evaluate_run(folder, "best", data.test, device)
        path = explain_and_report(folder, "best", data, device)
    except KeyboardInterrupt:
        print_note(f"interrupted after training; for the report: {again}")
        return EXIT_INTERRUPTED
    print_path("report", path)
    return 0


def _tell_end(result: Result) -> None:
    best = result.folder.resolve("best")
    if result.steps_before == result.steps:
        print_note(
            f"{result.folder.path} is finished already: all {result.steps} steps are done; "
            f"best checkpoint: {best}"
        )
    else:
        print_note(f"trained in {duration(result.seconds)}; best checkpoint: {best}")


def _is_first_rank() -> bool:
    """Whether this process is the one that reports; the ranks part here."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return True
    rank: int = distributed.get_rank()
    distributed.barrier()  # a rank that leaves early can make the others' connections abort
    distributed.destroy_process_group()  # what follows is done by one process alone
    return rank == 0


@contextlib.contextmanager
def _remedy_for_place(
    settings: DataSettings, folder: RunFolder | None, option: str = "--data"
) -> Iterator[None]:
    """Says where the place of the images is written down, if it turns out to be wrong.

    Args:
        settings: Where they should be.
        folder: The run, if it is there already.
        option: With which another place is said.
    """
    try:
        yield
    except DataError as error:
        places = {f"data.{key}": getattr(settings, key) for key in PLACES}
        gone = [key for key, path in places.items() if path and not Path(path).exists()]
        if not gone or (folder is not None and settings.root != folder.settings.data.root):
            raise
        said, alone = " and ".join(gone), settings.test_root is None and gone[0] == "data.root"
        if folder is None:
            remedy = "say with --data where the images are" if alone else f"correct {said}"
        else:
            remedy = f"{said} in {folder.path / 'settings.toml'}; put the images back, "
            remedy += f"say with {option} where they are now, " if alone else ""
            remedy += "or write there where they are now" if not alone else "or write it there"
        raise DataError(f"{error} ({remedy})") from error
