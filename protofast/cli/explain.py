"""`protofast explain` and `protofast report`."""

from pathlib import Path
from typing import Annotated

import typer

from protofast.cli.console import EXIT_FAILED, print_error, print_path
from protofast.cli.options import Checkpoint, Device, Moved, Run, Threads, choose_device
from protofast.errors import command_line

SAMPLES, SEED = 12, 0  # of the predictions of a run

Images = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="IMAGE",
        help="Image files to explain; without any, the run itself is explained.",
    ),
]


def explain(
    run: Run,
    images: Images = None,
    checkpoint: Checkpoint = "best",
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Prototypes shown per class.")] = 4,
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Predictions of the run to explain, right and wrong each.",
            show_default=str(SAMPLES),
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Key of the random sample of predictions.",
            show_default=str(SEED),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to put figures of image files; by default the current folder.",
        ),
    ] = None,
    moved: Moved = None,
    device: Device = "auto",
    threads: Threads = None,
) -> int:
    """Show which prototypes decide, and where: of a whole run, or of image files.

    For a run: every prototype with its source and nearest patches, and a sample of predictions,
    written to RUN/explanations and into RUN/report.html. For image files: a table here, and a
    figure of each, named after it (bird.jpg: bird-explained.png, or with a number where that name
    is taken).

    Examples:
      protofast explain runs/cub
      protofast explain runs/cub my_bird.jpg --out figures
    """
    from protofast.cli.images import explain_files
    from protofast.cli.runs import explain_and_report, open_run, read_data

    for given, option, use in (
        (not images and out is not None, "--out", "with image files only"),
        (images and samples is not None, "--samples", "with a whole run, not with image files"),
        (images and seed is not None, "--seed", "with a whole run, not with image files"),
        (images and moved is not None, "--data", "with a whole run, not with image files"),
    ):
        if given:
            raise typer.BadParameter(f"goes {use}", param_hint=option)
    chosen = choose_device(device, threads)
    folder = open_run(run, checkpoint)
    if images:
        return explain_files(folder, checkpoint, images, chosen, top=top, out=out)
    data = read_data(folder, moved)
    path = explain_and_report(
        folder,
        checkpoint,
        data,
        chosen,
        top=top,
        samples=SAMPLES if samples is None else samples,
        seed=SEED if seed is None else seed,
    )
    print_path("report", path)
    return 0


def report(run: Run) -> int:
    """Write RUN/report.html anew from the files in the run folder, or an audit folder's audit.html.

    What is missing is said in the report, with the command that makes it. What is damaged is left
    out and named, here and in the report; the exit code is then 1.

    Examples:
      protofast report runs/cub
      protofast report runs/cub/audits/paper
    """
    from protofast.report import write_audit_report, write_report

    is_audit = (run / "audit.json").is_file() and not (run / "checkpoints").is_dir()
    written = write_audit_report(run) if is_audit else write_report(run)
    print_path("report", written.path)
    for text in written.problems:
        print_error(f"{run}: {text}{_remedy(text, run)}")
    return EXIT_FAILED if written.problems else 0


def _remedy(problem: str, run: Path) -> str:
    """How to make a damaged part of a run anew, where that is possible."""
    for part, command in (("evaluation/", "evaluate"), ("explanations/", "explain")):
        if problem.startswith(part):
            return f"; make it anew with: {command_line(command, run)}"
    return ""
