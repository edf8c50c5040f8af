"""`protofast demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protofast.cli.console import print_note
from protofast.cli.options import BatchSize, Device, Overrides, Threads, choose_device, given
from protofast.errors import RunFolderError, command_line

if TYPE_CHECKING:
    import torch

    from protofast.training import Settings

MODELS = {"standard": "demo", "defended": "demo_defended"}
"""The two models, each with its recipe; the second goes on from the first."""
_AUDIT = "audit"
_IMAGES = 100
_LESS = (
    "begin another demo (--out) with smaller batches or images (--set training.batch_size=N, --set "
    "training.test_batch_size=N, --set data.size=N)"
)

Out = Annotated[
    Path, typer.Option(metavar="FOLDER", help="The folder of the demo: two runs and their audit.")
]
Subset = Annotated[
    int,
    typer.Option("--images", metavar="N", min=1, help="Test images that each audit looks at."),
]


def demo(
    out: Out = Path("protofast-demo"),
    images: Subset = _IMAGES,
    overrides: Overrides = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
) -> int:
    """Train two models on rendered birds, explain and audit them: no data, download or GPU needed.

    The one is a standard ProtoPNet; the other goes on from it, against the attacks of the audits
    (adversarial training, alignment loss, masking). Takes some minutes on two cores and prints
    where each model's report is, and the audit that compares both. Run again, it goes on where it
    was; what is done is not done again.

    Examples:
      protofast demo
      protofast demo --out birds --threads 2
    """
    from protofast.audits import build_audits
    from protofast.cli.audits import audit_and_report
    from protofast.cli.errors import remedy_for_memory
    from protofast.training import load_settings

    settings = {name: load_settings(recipe, overrides or []) for name, recipe in MODELS.items()}
    chosen = choose_device(device, threads, auto=settings["standard"].training.accelerator)
    _check_place(out)

    def again(at_once: int | None) -> str:
        options = given(
            ("--out", out, Path("protofast-demo")),
            ("--images", images, _IMAGES),
            *(("--set", override, None) for override in overrides or []),
            ("--batch-size", at_once, None),
            ("--device", device, "auto"),
            ("--threads", threads, None),
        )
        return command_line("demo", *options)

    for name, recipe in MODELS.items():
        said = settings[name]
        if name == "defended":
            said = load_settings(recipe, [*_weights(out), *(overrides or [])])
        with remedy_for_memory(_LESS):
            code = _train(said, out / name, chosen, again(batch_size))
        if code:
            return code
    return audit_and_report(
        [out / name for name in MODELS],
        build_audits(images=images),
        out / _AUDIT,
        checkpoint="best",
        seed=0,
        device=chosen,
        again=again,
        batch_size=batch_size,
        replace=True,
    )


def _weights(out: Path) -> list[str]:
    """The setting that lets the defended model start from the standard one, or as it did."""
    from protofast.cli.train import weight_overrides
    from protofast.training import RunFolder

    if (out / "defended" / "settings.toml").is_file():
        return [f"model.weights={RunFolder.open(out / 'defended').settings.model.weights}"]
    return weight_overrides(out / "standard")


def _train(settings: Settings, path: Path, device: torch.device, again: str) -> int:
    """Train and report a model, unless that is done; the exit code."""
    from protofast.cli.runs import open_run, train_and_report
    from protofast.training import check_changes

    if not (path / "settings.toml").is_file():
        print_note(f"{path.name} model:")
        return train_and_report(settings, path, resume=False, device=device, again=again)
    check_changes(open_run(path, change=True), settings, allow=False)
    if (path / "report.html").is_file():
        print_note(f"{path.name} model: {path} is finished already")
        return 0
    print_note(f"{path.name} model: {path} is there already; going on with it")
    return train_and_report(settings, path, resume=True, device=device, again=again)


def _check_place(out: Path) -> None:
    """A folder that holds something else is not to be mixed with the demo.

    Raises:
        RunFolderError: It does.
    """
    if out.is_dir():
        foreign = sorted(file.name for file in out.iterdir() if not _is_ours(file))
        if foreign:
            raise RunFolderError(
                f"{out} exists, is not an empty folder, and holds no demo (but {foreign[0]}); "
                "choose another for the demo (--out)"
            )


def _is_ours(file: Path) -> bool:
    return file.name.lstrip(".").partition(".")[0] in (*MODELS, _AUDIT)
