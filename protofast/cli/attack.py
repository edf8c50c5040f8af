"""`protofast attack`."""

from pathlib import Path
from typing import Annotated

import typer

from protofast.cli.options import Checkpoint, Device, Run, Threads, choose_device


def attack(
    run: Run,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image file to attack.")],
    prototype: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of the prototype to move; by default the most activated one.",
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="ROW,COL",
            help="Cell to move it to, counted from 0; may be repeated. 2-4,5-6 is a rectangle. "
            "By default the cell farthest from where it is.",
        ),
    ] = None,
    noise_at_source: Annotated[
        bool,
        typer.Option(
            "--noise-at-source",
            help="Allow noise where the prototype is now, too; else in the target cells alone.",
        ),
    ] = False,
    epsilon: Annotated[
        float, typer.Option(metavar="N", min=0, max=255, help="Largest change of a value, of 255.")
    ] = 8,
    step_size: Annotated[
        float, typer.Option(metavar="N", min=0, max=255, help="Change in one step, of 255.")
    ] = 2,
    steps: Annotated[int, typer.Option(metavar="N", min=0, help="Number of steps.")] = 40,
    restarts: Annotated[
        int, typer.Option(metavar="N", min=1, help="Random starts, of which the best counts.")
    ] = 1,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Key of the random start.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where to put the figure; by default the current folder."
        ),
    ] = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Move a prototype to another place of an image, by faint noise (Head on Stomach).

    Prints what has changed, and writes a figure, named after the image (bird.jpg:
    bird-attacked.png, or with a number where that name is taken).

    Examples:
      protofast attack runs/cub my_bird.jpg
      protofast attack runs/cub my_bird.jpg --prototype 17 --target 3,3 --target 4,4
      protofast attack runs/cub my_bird.jpg --target 0-1,5-6 --noise-at-source
    """
    from protofast.cli.attack_image import attack_file
    from protofast.cli.runs import open_run

    chosen = choose_device(device, threads)
    attack_file(
        open_run(run, checkpoint),
        checkpoint,
        image,
        chosen,
        prototype=prototype,
        targets=targets or [],
        out=out,
        noise_at_source=noise_at_source,
        epsilon=epsilon / 255,
        step_size=step_size / 255,
        steps=steps,
        restarts=restarts,
        seed=seed,
    )
