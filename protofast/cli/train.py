"""`protofast train`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protofast.cli.options import Device, Overrides, Threads, choose_device
from protofast.errors import SettingsError

if TYPE_CHECKING:
    from protofast.training import Settings
    from protofast.training.settings import DataSettings


def _names(*folders: str) -> list[str]:
    """As protofast.training.recipes() does, but without importing PyTorch for `--help`."""
    folder = files("protofast").joinpath("training", "recipes", *folders)
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


RECIPES = _names()
PARTS = _names("parts")

Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help=f"A recipe ({', '.join(RECIPES)}) or a TOML file of your own; not with --resume.",
    ),
]
Parts = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="PART",
        help=f"What goes over the recipe: {', '.join(PARTS)}, or a TOML file of your own; may be "
        "repeated, the last one has the last word.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder of the images: CUB-200-2011 or Stanford Cars in their own layouts, or one "
        "folder per class. The layout is recognised.",
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="RUN",
        help="Start with the best network of another run, of the same settings.model and classes.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="The run folder to make; by default runs/<recipe>, and -<part> for each.",
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(metavar="RUN", help="Go on with the interrupted run in this folder."),
]
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
    parts: Parts = None,
    data: Data = None,
    trained: From = None,
    out: Out = None,
    resume: Resume = None,
    overrides: Overrides = None,
    allow_changes: AllowChanges = False,
    report: Report = True,
    device: Device = "auto",
    threads: Threads = None,
) -> int:
    """Train a network by a recipe: warm, joint, projection, last layer.

    Ctrl-C ends it at the next batch and leaves a run that --resume takes up, bit for bit as if it
    had never stopped. With --resume, a finished run is evaluated, explained and reported anew.

    Examples:
      protofast train paper --data CUB_200_2011 --out runs/cub
      protofast train paper --data my_images --set model.backbone=resnet18
      protofast train demo --with adversarial --with aligned
      protofast train --resume runs/cub
    """
    from protofast.cli.runs import train_and_report

    if resume is not None:
        if recipe is not None or parts or any(said is not None for said in (data, trained, out)):
            raise SettingsError(
                "--resume RUN takes recipe, parts, data, weights and folder from the run; leave "
                "the others out"
            )
        settings, folder = _resumed(resume, overrides), resume
    elif not recipe:
        raise SettingsError(
            f"which recipe? Give one of {', '.join(RECIPES)}, a TOML file, or --resume RUN"
        )
    elif allow_changes:
        raise SettingsError("--allow-changes goes with --resume RUN only")
    else:
        from protofast.training import anchored, load_settings

        said = [*data_overrides(data), *weight_overrides(trained), *(overrides or [])]
        settings = anchored(load_settings(recipe, said, parts=parts or []))
        if not any(said.partition("=")[0].strip() == "data.test_root" for said in overrides or []):
            check_test_root(data, settings.data, "add --set data.test_root=FOLDER")
        folder = out or Path("runs") / "-".join(
            Path(name).stem for name in (recipe, *(parts or []))
        )
    return train_and_report(
        settings,
        folder,
        resume=resume is not None,
        allow_changes=allow_changes,
        report=report,
        device=choose_device(device, threads, auto=settings.training.accelerator),
    )


def data_overrides(data: Path | None) -> list[str]:
    """The settings that `--data FOLDER` stands for: where the images are, and in which layout.

    What a recipe says of another kind of data is taken away, and where its test images are if
    FOLDER has its own.
    """
    from protofast.training.settings import KINDS_OF_KEY

    if data is None:
        return []
    if (data / "images.txt").exists() or (data / "train_test_split.txt").exists():
        kind = "cub"
    elif (data / "cars_meta.mat").exists() or (data / "devkit").is_dir():
        kind = "cars"
    else:
        kind = "folders"
    foreign = [key for key, kinds in KINDS_OF_KEY.items() if kind not in kinds]
    if kind == "folders" and all((data / side).is_dir() for side in ("train", "test")):
        foreign.append("test_root")
    return [
        f"data.kind={kind}",
        *(f"data.{key}=" for key in foreign),
        f"data.root={data.absolute()}",
    ]


def check_test_root(data: Path | None, settings: DataSettings, remedy: str) -> None:
    """Makes sure that `--data FOLDER` does not leave test images behind that are of other data.

    Args:
        data: FOLDER, if it was given.
        settings: What came of it.
        remedy: How to say where the test images are.

    Raises:
        SettingsError: The settings still name a folder of test images.
    """
    if data is not None and settings.test_root is not None:
        raise SettingsError(
            f"--data {data} says where the images are, but the settings have a folder of its own "
            f"for the test images, data.test_root = {settings.test_root}, which would stay: give "
            f"a folder that holds train/ and test/, or {remedy}"
        )


def weight_overrides(trained: Path | None) -> list[str]:
    """The setting that `--from RUN` stands for."""
    from protofast.training import RunFolder

    if trained is None:
        return []
    folder = RunFolder.open(trained)
    return [f"model.weights={folder.file(folder.resolve('best')).absolute()}"]


def _resumed(resume: Path, overrides: list[str] | None) -> Settings:
    from protofast.training import RunFolder, anchored, load_settings

    folder = RunFolder.open(resume)
    before = folder.settings  # says so if the file is damaged
    if not overrides:
        return before
    return anchored(load_settings(folder.path / "settings.toml", overrides))
