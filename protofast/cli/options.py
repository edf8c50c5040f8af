"""Options that several commands share.

PyTorch and what builds on it take seconds to import, so the modules of the commands import them
inside their functions: `protofast --help` must not wait for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protofast.errors import SettingsError

if TYPE_CHECKING:
    import torch

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run, as `protofast train` makes it.")
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N.",
        rich_help_panel="Machine",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Number of CPU threads; by default all cores. Results on the CPU can be compared "
        "bit for bit at the same number only.",
        rich_help_panel="Machine",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Images that go through a model at once in an audit, at most; by default 64 on a GPU "
        "and 16 on a CPU. Fewer take less memory. Results are the same but for the rounding of "
        "their last digits, and finished work is kept when this changes.",
        rich_help_panel="Machine",
    ),
]
_CHECKPOINT_HELP = "Which checkpoint: best, latest, or a name as in checkpoints/."
Checkpoint = Annotated[str, typer.Option(metavar="NAME", help=_CHECKPOINT_HELP)]
Epochs = Annotated[
    int, typer.Option(metavar="N", min=0, help="Epochs that the last layer learns afterwards.")
]
Moved = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Where the run's images are now, if they have moved since training.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one setting, e.g. --set training.batch_size=32; may be repeated. "
        "KEY= with nothing after it goes back to the default.",
    ),
]


def choose_device(device: str, threads: int | None, *, auto: str = "auto") -> torch.device:
    """Set the number of threads and check that the device can be had.

    Args:
        device: What --device says.
        threads: What --threads says.
        auto: What auto stands for: auto, cpu or cuda.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    asked = "--device"
    if device == "auto":
        asked, device = "training.accelerator", auto
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise SettingsError(f"{asked} must be auto, cpu, cuda or cuda:N; got {device!r}")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            f"{asked} {device} asks for a GPU, but this PyTorch ({torch.__version__}) finds none; "
            "use --device cpu, or run `protofast info` to see what is there"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise SettingsError(f"{asked} {device}: the GPUs here are cuda:0 to cuda:{last}")
    return chosen


def given(*options: tuple[str, object, object]) -> list[str]:
    """The options that were given, to be typed again.

    Args:
        options: Each one's name, its value, and the value that it has when it is not given.
    """
    return [
        word for option, value, usual in options if value != usual for word in (option, str(value))
    ]
