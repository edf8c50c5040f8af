"""`protofast demo`."""

from pathlib import Path
from typing import Annotated

import typer

from protofast.cli.console import print_note
from protofast.cli.options import Device, Overrides, Threads, choose_device

Out = Annotated[Path, typer.Option(metavar="FOLDER", help="The run folder to make.")]


def demo(
    out: Out = Path("protofast-demo"),
    overrides: Overrides = None,
    device: Device = "auto",
    threads: Threads = None,
) -> int:
    """Train on rendered birds, explain, and write a report: no data, download or GPU needed.

    Takes a few minutes on two cores and prints where the report is. Run again, it goes on with an
    interrupted demo, and makes the report of a finished one anew.

    Examples:
      protofast demo
      protofast demo --out birds --threads 2
    """
    from protofast.cli.runs import train_and_report
    from protofast.training import load_settings

    settings = load_settings("demo", overrides or [])
    chosen = choose_device(device, threads, auto=settings.training.accelerator)
    there = (out / "settings.toml").is_file()
    if there:
        print_note(f"{out} is there already; going on with it")
    return train_and_report(settings, out, resume=there, device=chosen)
