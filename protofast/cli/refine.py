"""`protofast project` and `protofast prune`."""

from typing import Annotated

import typer

from protofast.cli.console import print_note
from protofast.cli.finish import progress_bar, read_data
from protofast.cli.options import Device, Run, Threads, choose_device
from protofast.training import Refined, RunFolder, project_run, prune_run


def project(
    run: Run,
    checkpoint: Annotated[
        str, typer.Option(help="Which checkpoint: best, latest, or a name as in checkpoints/.")
    ] = "latest",
    last_layer_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs that the last layer learns afterwards.")
    ] = 20,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Move each prototype onto the nearest training patch of its class ("push").

    Training does this by itself as its recipe says. This command does it to a run that was stopped
    before. The result is a further checkpoint of the run and becomes its best; `explain` and
    `report` bring the pictures up to date.
    """
    chosen = choose_device(device, threads)
    folder = RunFolder.open(run)
    data = read_data(folder.settings)
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
    checkpoint: Annotated[
        str, typer.Option(help="Which checkpoint: best, latest, or a name as in checkpoints/.")
    ] = "best",
    k: Annotated[
        int, typer.Option("--k", min=1, help="Nearest training images looked at per prototype.")
    ] = 6,
    threshold: Annotated[
        int, typer.Option(min=1, help="How many of them must be of the prototype's class.")
    ] = 3,
    last_layer_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs that the last layer learns afterwards.")
    ] = 100,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Remove prototypes that resemble images of other classes more than those of their own.

    A prototype stays if at least THRESHOLD of its K nearest training images have its class (Chen et
    al. 2019). The result is a further checkpoint of the run and becomes its best; the others stay.
    """
    chosen = choose_device(device, threads)
    if threshold > k:
        raise typer.BadParameter(f"at most --k, which is {k}", param_hint="--threshold")
    folder = RunFolder.open(run)
    data = read_data(folder.settings)
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
