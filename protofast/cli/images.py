"""Explaining loose image files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from protofast.cli.console import EXIT_FAILED, print_error, print_note, print_table
from protofast.cli.errors import one_line
from protofast.cli.runs import load
from protofast.data import load_image
from protofast.errors import DataError, SettingsError
from protofast.explain import (
    Evidence,
    Explanation,
    explain_image,
    save_explanation_figure,
)
from protofast.training import LoadedModel, RunFolder
from protofast.training.settings import DataSettings


def explain_files(
    folder: RunFolder,
    checkpoint: str,
    images: list[Path],
    device: torch.device,
    *,
    top: int,
    out: Path | None,
) -> int:
    """Prints a table for each image and writes a figure of it.

    A file that cannot be read or explained is named on standard error, and the others are still
    explained.

    Args:
        folder: The run.
        checkpoint: Whose model explains.
        images: The files.
        device: Where to compute.
        top: Prototypes shown per class.
        out: Folder of the figures; None for the current one.

    Returns:
        The exit code: 1 if an image could not be read or explained.

    Raises:
        SettingsError: The figures would land among the images that the run is trained or tested on.
    """
    target = Path() if out is None else out
    keep_out_of_data(target, folder.settings.data)
    target.mkdir(parents=True, exist_ok=True)
    name, loaded = load(folder, checkpoint, device)
    model = loaded.model
    code = 0
    for file, figure in zip(images, figure_paths(images, target, "explained"), strict=True):
        try:
            pixels = load_image(file, model.input_size, model.num_channels)
        except DataError as error:
            print_error(one_line(error))
            code = EXIT_FAILED
            continue
        try:
            explanation = explain_image(model, pixels, top=top)
        except DataError as error:  # it does not know the file
            print_error(f"{file}: {one_line(error)}")
            code = EXIT_FAILED
            continue
        _print(file, name, explanation, loaded)
        _print_activated(explanation, loaded)
        save_explanation_figure(
            figure, explanation, loaded.classes, run_folder=folder.path, checkpoint=name
        )
        print_note(f"figure: {figure}")
    return code


def keep_out_of_data(target: Path, data: DataSettings) -> None:
    """A figure below a class folder would be read as one of its images from then on."""
    for key, root in (("data.root", data.root), ("data.test_root", data.test_root)):
        if root is not None and any(map(target.resolve().is_relative_to, _places(Path(root)))):
            raise SettingsError(
                f"{target.resolve()} is in the folder of the run's images ({key} = {root}), where "
                "figures would be taken for images; say with --out where else to put them"
            )


def _places(root: Path) -> Iterator[Path]:
    """Where the images below a root really are: class folders may be links."""
    yield root.resolve()
    for pattern in ("*", "*/*"):  # train/<class> at the deepest
        yield from (path.resolve() for path in root.glob(pattern) if path.is_symlink())


def figure_paths(images: list[Path], folder: Path, word: str) -> list[Path]:
    """Where each image's figure goes: a name in `folder`, ending in `word`, not taken yet."""
    figures: list[Path] = []
    for file in images:
        figure, number = folder / f"{file.stem}-{word}.png", 1
        while figure in figures or figure.exists():
            number += 1
            figure = folder / f"{file.stem}-{word}-{number}.png"
        figures.append(figure)
    return figures


def _print(file: Path, checkpoint: str, explanation: Explanation, loaded: LoadedModel) -> None:
    """What speaks for the likeliest class, as a table."""
    best = explanation.classes[0]
    rows = [
        [
            f"prototype {term.evidence.prototype}",
            _where(term.evidence),
            f"{term.evidence.similarity:.3f}",
            f"{term.weight:+.3f}",
            f"{term.contribution:+.3f}",
        ]
        for term in best.shown
    ]
    own = "more of its own" if loaded.model.prototype_class is not None else "more"
    for words, rest in ((own, best.own), ("more of other classes", best.others)):
        if rest.prototypes:
            rows.append([f"{rest.prototypes} {words}", "", "", "", f"{rest.contribution:+.3f}"])
    rows.append(["logit", "", "", "", f"{best.logit:+.3f}"])
    print_table(
        f"{file} ({checkpoint}): {loaded.classes[best.class_index]}, {best.probability:.1%}",
        ["", "where", "similarity", "x weight", "= contribution"],
        rows,
    )


def _print_activated(explanation: Explanation, loaded: LoadedModel) -> None:
    """Which prototypes the image activates most, whatever they speak for, as a table."""
    print_table(
        "most activated prototypes",
        ["", "of", "where", "similarity"],
        [
            [
                f"prototype {found.prototype}",
                "-" if found.prototype_class is None else loaded.classes[found.prototype_class],
                _where(found),
                f"{found.similarity:.3f}",
            ]
            for found in explanation.activated
        ],
    )


def _where(found: Evidence) -> str:
    return f"row {found.row}, column {found.column}"
