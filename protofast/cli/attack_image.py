"""Attacking one image file: the table, the figure, and what can be wrong with the options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protofast.audits.attack_figure import save_attack_figure
from protofast.audits.attacked_image import AttackedImage, State, attack_image
from protofast.audits.cells import chosen_cells
from protofast.cli.console import print_note, print_table
from protofast.cli.images import figure_paths, keep_out_of_data
from protofast.cli.runs import load
from protofast.data import load_image
from protofast.errors import DataError, SettingsError
from protofast.models import PrototypeModel
from protofast.training import RunFolder

_Rectangle = tuple[int, int, int, int]
_RANGE = r"(\d{1,18})(?:-(\d{1,18}))?"
_TARGET = re.compile(rf"{_RANGE},{_RANGE}")


def attack_file(
    folder: RunFolder,
    checkpoint: str,
    file: Path,
    device: torch.device,
    *,
    prototype: int | None,
    targets: Sequence[str],
    out: Path | None,
    **options: Any,
) -> None:
    """Prints a table of what the attack changed and writes the figure.

    Args:
        folder: The run.
        checkpoint: Whose model is attacked.
        file: The image.
        device: Where to compute.
        prototype: Which one; None for the most activated one.
        targets: As given with --target; none for the farthest cell.
        out: Folder of the figure; None for the current one.
        options: As for `attack_image`.

    Raises:
        SettingsError: No such prototype, targets that are no cells, or a figure that would land
            among the run's images.
        DataError: The image cannot be read, or the prototype has no place on it.
    """
    target = Path() if out is None else out
    keep_out_of_data(target, folder.settings.data)
    wanted = [_rectangle(text) for text in targets]
    name, loaded = load(folder, checkpoint, device)
    model = loaded.model
    if prototype is not None and not 0 <= prototype < model.num_prototypes:
        raise SettingsError(
            f"--prototype {prototype}: the model has prototypes 0 to {model.num_prototypes - 1}"
        )
    pixels = load_image(file, model.input_size, model.num_channels)
    cells = _on_grid(wanted, model, pixels, device) if wanted else None
    try:
        attacked = attack_image(model, pixels, prototype=prototype, targets=cells, **options)
    except DataError as error:  # it does not know the file
        raise DataError(f"{file}: {error}") from error
    target.mkdir(parents=True, exist_ok=True)
    (figure,) = figure_paths([file], target, "attacked")
    _print(file, name, attacked, loaded.classes)
    save_attack_figure(
        figure,
        attacked,
        loaded.classes,
        run_folder=folder.path,
        checkpoint=name,
        prototypes=model.num_prototypes,
    )
    print_note(f"figure: {figure}")


def _rectangle(text: str) -> _Rectangle:
    """The first and last row, the first and last column of one --target."""
    found = _TARGET.fullmatch(text.replace(" ", ""))
    if found is None:
        raise SettingsError(
            f"--target {text}: must be ROW,COL, such as 3,4, or a rectangle such as 2-4,5-6"
        )
    top, bottom, left, right = (None if end is None else int(end) for end in found.groups())
    assert top is not None
    assert left is not None
    bottom, right = top if bottom is None else bottom, left if right is None else right
    if bottom < top or right < left:
        raise SettingsError(f"--target {text}: a range begins with its smaller end")
    return top, bottom, left, right


def _on_grid(
    wanted: Sequence[_Rectangle], model: PrototypeModel, pixels: Tensor, device: torch.device
) -> Tensor:
    """The cells as a set, bool [H, W]."""
    with torch.no_grad():
        grid = model.features(pixels.unsqueeze(0).to(device).float() / 255).shape[2:]
    try:  # the last cells first: there may be more than a list can hold
        ends = [(bottom, right) for _, bottom, _, right in wanted]
        cells = chosen_cells(ends, (grid[0], grid[1]))
    except ValueError as error:
        raise SettingsError(f"--target: {error}") from error
    for top, bottom, left, right in wanted:
        cells[top : bottom + 1, left : right + 1] = True
    return cells


def _print(file: Path, checkpoint: str, attacked: AttackedImage, classes: Sequence[str]) -> None:
    owner = attacked.prototype_class
    of = "" if owner is None else f" of {classes[owner]}"
    states = attacked.clean, attacked.attacked
    rows = [
        ["most similar at", *(_where(state) for state in states)],
        ["similarity there", *(f"{state.similarity:.3f}" for state in states)],
        ["in the target", *(f"{state.in_target:.3f}" for state in states)],
        ["where it was", *(f"{state.in_source:.3f}" for state in states)],
        ["rank of the prototype", *(str(state.rank) for state in states)],
        ["class", *(f"{classes[one.predicted]}, {one.probability:.1%}" for one in states)],
    ]
    print_table(
        f"{file} ({checkpoint}): prototype {attacked.prototype}{of}",
        ["", "clean", "attacked"],
        rows,
    )
    print_note(
        "the prototype has moved to its target"
        if attacked.moved
        else "the prototype has not moved to its target; try another seed, restarts, a larger "
        "target or a larger epsilon"
    )


def _where(state: State) -> str:
    return f"row {state.place[0]}, column {state.place[1]}"
