"""`protofast audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protofast.cli.options import (
    BatchSize,
    Checkpoint,
    Device,
    Moved,
    Threads,
    choose_device,
    given,
)
from protofast.errors import command_line

# As protofast.audits.AUDITS, but without importing PyTorch for `--help`.
NAMES = ("robust_accuracy", "head_on_stomach", "jpeg", "spatial_misalignment")

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN", help="Folders of runs trained on the same classes, one or several."
    ),
]
Audits = Annotated[
    list[str] | None,
    typer.Option(
        "--audit",
        metavar="NAME",
        help=f"Which audit to run ({', '.join(NAMES)}); may be repeated. By default all that know "
        "the protocol.",
    ),
]
Protocol = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="paper (what the papers say), released (what their released code computes), targeted "
        "(Head on Stomach with single targets), or all.",
    ),
]
Subset = Annotated[
    int | None,
    typer.Option(
        "--images",
        metavar="N",
        min=1,
        help="Test images that each audit looks at, drawn at random; by default its own number.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Key of all random numbers.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one setting, e.g. --set head_on_stomach.steps=10; may be repeated. "
        "KEY= with nothing after it goes back to the protocol's value.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="The audit folder to make or go on with; by default RUN/audits/<protocol>, and for "
        "several runs audits/<run>-vs-<run>/<protocol>.",
    ),
]


def audit(
    runs: Runs,
    audits: Audits = None,
    protocol: Protocol = "paper",
    images: Subset = None,
    seed: Seed = 0,
    overrides: Overrides = None,
    checkpoint: Checkpoint = "best",
    out: Out = None,
    moved: Moved = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
) -> int:
    """Measure how far a run's explanations can be trusted, or compare several runs.

    Writes audit.json (every number with its protocol, settings and interval), a table of all
    images for each audit, pictures, and audit.html. Whatever stops it, the same command goes on
    where it was; what is done is not done again.

    Examples:
      protofast audit runs/cub
      protofast audit runs/plain runs/defended --images 100
      protofast audit runs/cub --audit head_on_stomach --protocol released
    """
    from protofast.audits import build_audits
    from protofast.cli.audits import audit_and_report, default_folder
    from protofast.cli.runs import open_run, place_of_images

    chosen = choose_device(device, threads)
    wanted = build_audits(audits or [], protocol=protocol, images=images, overrides=overrides or [])
    folder = out or default_folder(runs, protocol)
    options = given(
        *(("--audit", name, None) for name in audits or []),
        ("--protocol", protocol, "paper"),
        ("--images", images, None),
        ("--seed", seed, 0),
        *(("--set", override, None) for override in overrides or []),
        ("--checkpoint", checkpoint, "best"),
        ("--out", out, None),
        ("--data", moved, None),
        ("--device", device, "auto"),
        ("--threads", threads, None),
    )

    def again(images: int | None) -> str:
        return command_line("audit", *runs, *options, *given(("--batch-size", images, None)))

    return audit_and_report(
        runs,
        wanted,
        folder,
        checkpoint=checkpoint,
        seed=seed,
        device=chosen,
        batch_size=batch_size,
        again=again,
        place=None if moved is None else place_of_images(open_run(runs[0]), moved),
    )
