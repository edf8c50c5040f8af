"""`protofast demo`."""

from pathlib import Path
from typing import Annotated

import typer

from protofast.cli.console import print_note
from protofast.cli.options import Device, Overrides, Threads, choose_device
from protofast.cli.train import train_and_report
from protofast.training import RunFolder, differences, load_settings

Out = Annotated[Path, typer.Option(help="The run folder to make.")]


def demo(
    out: Out = Path("protofast-demo"),
    overrides: Overrides = None,
    device: Device = "auto",
    threads: Threads = None,
) -> int:
    """Train on rendered birds, explain, and write a report: no data, download or GPU needed.

    Takes a few minutes on two cores. Run again, it goes on with an interrupted demo, and makes the
    report of a finished one anew.
    """
    chosen = choose_device(device, threads)
    settings = load_settings("demo", overrides or [])
    there = (out / "settings.toml").is_file()
    if there and (changed := differences(RunFolder.open(out).settings, settings)):
        print_note(f"{out} holds a run with other settings: {', '.join(changed)}")
    if there:
        print_note(f"{out} is there already; going on with it")
    return train_and_report(settings, out, resume=there, device=chosen)
