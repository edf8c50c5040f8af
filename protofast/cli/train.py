"""`protofast train`."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from protofast.cli.console import EXIT_INTERRUPTED, print_note
from protofast.cli.finish import finish_run, read_data
from protofast.cli.options import Device, Overrides, Threads, choose_device
from protofast.errors import SettingsError
from protofast.training import RunFolder, Settings, for_terminal, load_settings, recipes
from protofast.training import train as run_training

Recipe = Annotated[
    str | None,
    typer.Argument(
        help=f"A recipe ({', '.join(recipes())}) or a TOML file of your own; not with --resume."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the images: CUB-200-2011 or Stanford Cars in their own layouts, or one "
        "folder per class. The layout is recognised."
    ),
]
Out = Annotated[Path | None, typer.Option(help="The run folder to make; by default runs/<recipe>.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with the interrupted run in this folder.")]
AllowChanges = Annotated[
    bool,
    typer.Option(
        "--allow-changes",
        help="With --resume: accept --set values that differ from those the run was started with.",
    ),
]
Report = Annotated[
    bool,
    typer.Option(
        "--report/--no-report",
        help="Evaluate, explain and write the report when training is done.",
    ),
]


def train(
    recipe: Recipe = None,
    data: Data = None,
    out: Out = None,
    resume: Resume = None,
    overrides: Overrides = None,
    allow_changes: AllowChanges = False,
    report: Report = True,
    device: Device = "auto",
    threads: Threads = None,
) -> int:
    """Train a network by a recipe: warm, joint, projection, last layer.

    Ctrl-C ends it at the next batch and leaves a run that `--resume` takes up, bit for bit as if it
    had never stopped.

    Examples:
      protofast train paper --data CUB_200_2011 --out runs/cub

      protofast train paper --data my_images --set model.backbone=resnet18 --set training.seed=1

      protofast train --resume runs/cub
    """
    chosen = choose_device(device, threads)
    if resume is not None:
        settings, folder = _resumed(recipe, data, out, resume, overrides), resume
    elif recipe is None:
        raise SettingsError(
            f"which recipe? Give one of {', '.join(recipes())}, a TOML file, or --resume RUN"
        )
    else:
        settings = load_settings(recipe, [*data_overrides(data), *(overrides or [])])
        folder = out or Path("runs") / Path(recipe).stem
    return train_and_report(
        settings,
        folder,
        resume=resume is not None,
        allow_changes=allow_changes,
        report=report,
        device=chosen,
    )


def train_and_report(
    settings: Settings,
    folder: Path,
    *,
    resume: bool,
    allow_changes: bool = False,
    report: bool = True,
    device: torch.device,
) -> int:
    """Train, then evaluate, explain and report; the exit code."""
    if not resume:
        RunFolder.check_free(folder)  # before the images are read, which may take a while
    data = read_data(settings)
    result = run_training(
        settings,
        folder,
        resume=resume,
        allow_changes=allow_changes,
        device=device,
        progress=for_terminal(),
        data=data,
    )
    if not result.finished:
        print_note(
            f"interrupted after {result.steps_done} of {result.steps} steps; go on with: "
            f"protofast train --resume {folder}"
        )
        return EXIT_INTERRUPTED
    print_note(f"trained in {result.seconds:.0f} s; best checkpoint: {result.best}")
    if report:
        finish_run(result.folder, data, device)
    return 0


def data_overrides(data: Path | None) -> list[str]:
    """The settings that `--data FOLDER` stands for: where the images are, and in which layout."""
    if data is None:
        return []
    if (data / "images.txt").exists() or (data / "train_test_split.txt").exists():
        kind = ["data.kind=cub"]
    elif any(data.glob("**/cars_meta.mat")):
        kind = ["data.kind=cars"]
    else:
        kind = ["data.kind=folders", "data.crop="]
    return [*kind, f"data.root={data}"]


def _resumed(
    recipe: str | None,
    data: Path | None,
    out: Path | None,
    resume: Path,
    overrides: list[str] | None,
) -> Settings:
    if recipe is not None or data is not None or out is not None:
        raise SettingsError(
            "--resume RUN takes recipe, data and folder from the run; leave the others out"
        )
    folder = RunFolder.open(resume)
    return load_settings(folder.path / "settings.toml", overrides or [])
