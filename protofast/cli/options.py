"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from protofast.errors import SettingsError

Run = Annotated[Path, typer.Argument(help="Folder of a run, as `protofast train` makes it.")]
Device = Annotated[
    str,
    typer.Option(help="Where to compute: auto, cpu, cuda or cuda:N.", rich_help_panel="Machine"),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of CPU threads; by default all cores. Results on the CPU can be compared "
        "bit for bit at the same number only.",
        rich_help_panel="Machine",
    ),
]
Checkpoint = Annotated[
    str, typer.Option(help="Which checkpoint: best, latest, or a name as in checkpoints/.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one setting, e.g. --set training.batch_size=32; may be repeated.",
    ),
]


def choose_device(device: str, threads: int | None) -> torch.device:
    """Set the number of threads and check that the device can be had."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(
            f"--device must be auto, cpu, cuda or cuda:N; got {device!r}"
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            f"--device {device} asks for a GPU, but this PyTorch ({torch.__version__}) finds none; "
            "use --device cpu, or run `protofast info` to see what is there"
        )
    return chosen
