"""Building ``report.html``: one file, no network, nothing that runs but its own small script."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import UndefinedError

from protofast.errors import RunFolderError
from protofast.files import write_atomically
from protofast.report.files import RunFiles, read_run
from protofast.report.page import Page, class_counts, page_of
from protofast.report.sheet import render_sheet

_STYLES = ("page.css", "pictures.css", "sections.css")
_SCRIPTS = ("sheet.js", "report.js")


# Parts of RunFiles, each with the file it comes from and what stands for it if it is unusable.
_PARTS: dict[str, tuple[str, Any]] = {
    "explanations": ("explanations/summary.json", None),
    "prototypes": ("prototypes/prototypes.json", None),
    "metrics": ("metrics.jsonl", []),
    "evaluation": ("evaluation/metrics.json", None),
    "environment": ("environment.json", None),
    "settings": ("settings.toml", None),
}
# What reading values of the wrong type leads to.
_WRONG = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, UndefinedError)


class Report(NamedTuple):
    """A report that was written."""

    path: Path
    problems: tuple[str, ...]  # a sentence for everything that is there but cannot be used


def build_report(run_folder: Path | str) -> Path:
    """The same as :func:`write_report`; returns the report's path alone."""
    return write_report(run_folder).path


def write_report(run_folder: Path | str) -> Report:
    """Writes ``report.html`` into a run folder, from the files that are there.

    Whatever is missing (no projection, no evaluation, no explanations) is said in the report, with
    the command that makes it. Whatever is damaged is left out, and the report says so.

    Args:
        run_folder: The run folder.

    Returns:
        The report's path, and what is damaged.

    Raises:
        RunFolderError: There is no such folder, or it is not a run folder.
        OSError: The report cannot be written; an older one is still there.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    path = folder / "report.html"
    write_atomically(path, _render_what_is_usable(run))
    return Report(path, tuple(run.problems))


def _render_what_is_usable(run: RunFiles) -> str:
    """The page without the parts that are readable but hold something else than they should."""
    try:
        return render(page_of(run))
    except _WRONG as error:
        reason = " ".join(str(error).split())
    # Each part in turn as the only one that is left out; then one after the other.
    for parts in [*((part,) for part in _PARTS), *itertools.accumulate((part,) for part in _PARTS)]:
        without = dataclasses.replace(run, **{part: _PARTS[part][1] for part in parts})
        files = " or ".join(_PARTS[part][0] for part in parts)
        without.problems = [*run.problems, f"{files} cannot be used: unexpected content ({reason})"]
        try:
            html = render(page_of(without))
        except _WRONG:
            continue
        run.problems = without.problems
        return html
    raise RunFolderError(f"{run.folder}: nothing in it can be used for a report ({reason})")


def render(page: Page) -> str:
    """The page as HTML."""
    return render_sheet(
        "report.html",
        styles=_STYLES,
        scripts=_SCRIPTS,
        page=page,
        class_counts=class_counts(page.prototypes),
    )
