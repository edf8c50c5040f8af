"""`protofast explain` and `protofast report`."""

from pathlib import Path
from typing import Annotated

import typer

from protofast.cli.console import print_note, print_table
from protofast.cli.finish import explain_and_report, load, read_data
from protofast.cli.options import Checkpoint, Device, Run, Threads, choose_device
from protofast.data import load_image
from protofast.explain import Explanation, explain_image, save_explanation_figure
from protofast.report import build_report
from protofast.training import LoadedModel, RunFolder

Images = Annotated[
    list[Path] | None,
    typer.Argument(help="Image files to explain; without any, the run itself is explained."),
]


def explain(
    run: Run,
    images: Images = None,
    checkpoint: Checkpoint = "best",
    top: Annotated[int, typer.Option(min=1, help="Prototypes shown per class.")] = 4,
    samples: Annotated[
        int, typer.Option(min=0, help="Predictions of the run to explain, right and wrong each.")
    ] = 12,
    seed: Annotated[int, typer.Option(help="Key of the random sample of predictions.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the figures of IMAGES; by default beside each image."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Show which prototypes decide, and where: of a whole run, or of image files.

    For a run: every prototype with its source and nearest patches, and a sample of predictions,
    written to RUN/explanations and into RUN/report.html. For image files: a table here, and a
    figure for each.
    """
    chosen = choose_device(device, threads)
    folder = RunFolder.open(run)
    folder.resolve(checkpoint)
    if not images:
        data = read_data(folder.settings)
        path = explain_and_report(
            folder, checkpoint, data, chosen, top=top, samples=samples, seed=seed
        )
        print_note(f"report: {path.resolve()}")
        return
    name, loaded = load(folder, checkpoint, chosen)
    model = loaded.model
    for file in images:
        image = load_image(file, model.input_size, model.num_channels)
        explanation = explain_image(model, image, top=top)
        _print(file, name, explanation, loaded)
        figure = (out or file.parent) / f"{file.stem}-explained.png"
        figure.parent.mkdir(parents=True, exist_ok=True)
        save_explanation_figure(
            figure, explanation, loaded.classes, run_folder=folder.path, checkpoint=name
        )
        print_note(f"figure: {figure}")


def report(run: Run) -> None:
    """Write RUN/report.html anew from the files in the run folder."""
    print_note(f"report: {build_report(RunFolder.open(run).path).resolve()}")


def _print(file: Path, checkpoint: str, explanation: Explanation, loaded: LoadedModel) -> None:
    """What speaks for the likeliest class, as a table."""
    best = explanation.classes[0]
    rows = [
        [
            f"prototype {term.evidence.prototype}",
            f"row {term.evidence.row}, column {term.evidence.column}",
            f"{term.evidence.similarity:.3f}",
            f"{term.weight:+.3f}",
            f"{term.contribution:+.3f}",
        ]
        for term in best.shown
    ]
    for words, rest in (("of its own", best.own), ("of other classes", best.others)):
        if rest.prototypes:
            rows.append(
                [f"{rest.prototypes} further {words}", "", "", "", f"{rest.contribution:+.3f}"]
            )
    rows.append(["logit", "", "", "", f"{best.logit:+.3f}"])
    print_table(
        f"{file} ({checkpoint}): {loaded.classes[best.class_index]}, {best.probability:.1%}",
        ["", "where", "similarity", "x weight", "= contribution"],
        rows,
    )
