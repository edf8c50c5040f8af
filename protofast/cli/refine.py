"""`protofast project` and `protofast prune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from protofast.cli.console import print_note, print_warning, progress_bar
from protofast.cli.options import (
    Checkpoint,
    Device,
    Epochs,
    Moved,
    Run,
    Threads,
    choose_device,
)

if TYPE_CHECKING:
    from protofast.training import Refined


def project(
    run: Run,
    checkpoint: Checkpoint = "latest",
    last_layer_epochs: Epochs = 20,
    moved: Moved = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Move each prototype onto the nearest training patch of its class ("push").

    Training does this by itself as its recipe says; this command does it to a run that was stopped
    before. The result is a further checkpoint and becomes the run's best; the others stay.
    `protofast evaluate` and `protofast explain` bring numbers, pictures and report up to date.

    Examples:
      protofast project runs/cub
      protofast project runs/cub --checkpoint joint-9 --last-layer-epochs 50
    """
    from protofast.cli.runs import open_run, read_data
    from protofast.training import project_run

    chosen = choose_device(device, threads)
    folder = open_run(run, checkpoint, change=True)
    data = read_data(folder, moved)
    with progress_bar() as report:
        refined = project_run(
            folder,
            data,
            checkpoint=checkpoint,
            last_layer_epochs=last_layer_epochs,
            device=chosen,
            progress=report,
        )
    _print(refined)


def prune(
    run: Run,
    checkpoint: Checkpoint = "best",
    k: Annotated[
        int,
        typer.Option(
            "--k", metavar="N", min=1, help="Nearest training images looked at per prototype."
        ),
    ] = 6,
    threshold: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="How many of them must be of the prototype's class."),
    ] = 3,
    last_layer_epochs: Epochs = 100,
    moved: Moved = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Remove prototypes that resemble images of other classes more than those of their own.

    A prototype stays if at least --threshold of its --k nearest training images have its class
    (Chen et al. 2019). The result is a further checkpoint and becomes the run's best; the others
    stay. `protofast evaluate` and `protofast explain` bring numbers, pictures and report up to
    date.

    Examples:
      protofast prune runs/cub
      protofast prune runs/cub --k 10 --threshold 5
    """
    from protofast.cli.runs import open_run, read_data
    from protofast.training import prune_run

    chosen = choose_device(device, threads)
    if threshold > k:
        raise typer.BadParameter(f"must be at most --k, which is {k}", param_hint="--threshold")
    folder = open_run(run, checkpoint, change=True)
    data = read_data(folder, moved)
    with progress_bar() as report:
        refined = prune_run(
            folder,
            data,
            checkpoint=checkpoint,
            k=k,
            threshold=threshold,
            last_layer_epochs=last_layer_epochs,
            device=chosen,
            progress=report,
        )
    _print(refined)


def _print(refined: Refined) -> None:
    print_note(
        f"{refined.checkpoint}: {refined.prototypes[1]} prototypes (before: "
        f"{refined.prototypes[0]}), test accuracy {refined.accuracy[1]:.2%} (before: "
        f"{refined.accuracy[0]:.2%}); now the run's best checkpoint"
    )
    if refined.other_images:
        print_warning(refined.other_images)
    if refined.empty_classes:
        print_warning(
            f"no prototype is left of {', '.join(refined.empty_classes)}; "
            "a lower --threshold keeps more"
        )
