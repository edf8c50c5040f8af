"""`protofast reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protofast.cli.options import BatchSize, Device, Threads, choose_device, given
from protofast.errors import command_line

if TYPE_CHECKING:
    from protofast.reproduce.plan import AuditPlan
    from protofast.training import Settings

# As protofast.reproduce.plans() does, but without importing PyTorch for `--help`.
PLANS = sorted(
    entry.name.removesuffix(".toml")
    for entry in files("protofast").joinpath("reproduce", "plans").iterdir()
    if entry.name.endswith(".toml")
)

PlanName = Annotated[
    str, typer.Argument(metavar="PLAN", help=f"{' or '.join(PLANS)}, or a TOML file of your own.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder of the images, as for `protofast train`; none for birds."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where runs and audits go; by default reproduce/<plan>."),
]
Page = Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")]
Beside = Annotated[
    list[Path] | None,
    typer.Option(
        "--beside",
        metavar="FOLDER",
        help="Another grid that was run before and shall be on the page as well; may be repeated.",
    ),
]
PageOnly = Annotated[
    bool, typer.Option("--page-only", help="Write the page from what is done, and do nothing else.")
]

_LESS = (
    "the plan says how much is computed at once: use another device, or a plan of your own with "
    "smaller batches or images (training.batch_size, training.test_batch_size, data.size in its "
    "`set`) and another folder (--out)"
)


def reproduce(
    plan: PlanName,
    data: Data = None,
    out: Out = None,
    page: Page = Path("fidelity.md"),
    beside: Beside = None,
    page_only: PageOnly = False,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
) -> int:
    """Run the experiments of both papers, and write a page with their numbers beside ours.

    A plan says which models are trained with which defences, which audits look at them, under which
    protocols, with which seeds. Whatever stops it, the same command goes on where it was; the page
    is written anew after each piece of work, and says what is missing.

    Examples:
      protofast reproduce birds
      protofast reproduce cub80 --data CUB_80 --beside reproduce/birds
      protofast reproduce birds --page-only --page docs/fidelity.md
    """
    from protofast.cli.console import print_note, print_path
    from protofast.cli.train import check_test_root, data_overrides
    from protofast.reproduce import Grid, load_plan, write_page

    wanted = load_plan(plan)
    folder = out or Path("reproduce") / wanted.name
    chosen = choose_device(device, threads)
    said = data_overrides(data)
    wanted.check(said)
    for model in wanted.models:
        there = wanted.settings(model, wanted.seeds[0], said).data
        check_test_root(data, there, "name both folders in the plan and leave --data out")
    grid = Grid(wanted, folder, said)
    grids = [grid, *(Grid.open(other) for other in beside or [])]
    if page_only:
        write_page(grids, page)
        print_path("page", page)
        return 0

    def again(images: int | None) -> str:
        options = given(
            ("--data", data, None),
            ("--out", out, None),
            ("--page", page, Path("fidelity.md")),
            *(("--beside", other, None) for other in beside or []),
            ("--batch-size", images, None),
            ("--device", device, "auto"),
            ("--threads", threads, None),
        )
        return command_line("reproduce", plan, *options)

    def train(settings: Settings, run: Path, there: bool) -> int:
        from protofast.cli.errors import remedy_for_memory
        from protofast.cli.runs import train_and_report

        with remedy_for_memory(_LESS):
            return train_and_report(
                settings, run, resume=there, report=False, device=chosen, again=again(batch_size)
            )

    def audit(runs: Sequence[Path], audits: AuditPlan, seed: int, path: Path) -> int:
        from protofast.cli.audits import audit_and_report

        code = audit_and_report(
            runs,
            audits.build(),
            path,
            checkpoint=wanted.checkpoint,
            seed=seed,
            device=chosen,
            again=again,
            batch_size=batch_size,
            replace=True,
            place=wanted.settings(audits.models[0], seed, said).data,
        )
        write_page(grids, page)
        return code

    code = grid.carry_out(train, audit, print_note)
    write_page(grids, page)
    print_path("page", page)
    return code
