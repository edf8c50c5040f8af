"""Building ``report.html``: one file, no network, nothing that runs but its own small script."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from protofast.files import write_atomically
from protofast.report import words
from protofast.report.files import read_run
from protofast.report.page import Page, class_counts, page_of

_STYLES = ("page.css", "pictures.css", "sections.css")
_SCRIPT = "report.js"


def build_report(run_folder: Path | str) -> Path:
    """Writes ``report.html`` into a run folder, from the files that are there.

    Whatever is missing (no projection, no evaluation, no explanations) is said in the report, with
    the command that makes it.

    Args:
        run_folder: The run folder.

    Returns:
        The report's path.

    Raises:
        RunFolderError: There is no such folder, or it is not a run folder.
        OSError: The report cannot be written; an older one is still there.
    """
    folder = Path(run_folder)
    page = page_of(read_run(folder))
    path = folder / "report.html"
    write_atomically(path, render(page))
    return path


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("protofast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = words.number
    environment.filters["short"] = words.short
    environment.filters["percent"] = words.percent
    environment.globals["count"] = words.count
    script = _asset(_SCRIPT)
    return environment.get_template("report.html").render(
        page=page,
        class_counts=class_counts(page.prototypes),
        style=Markup("\n").join(Markup(_asset(name)) for name in _STYLES),
        script=Markup(script),
        script_hash=_hash(script),
    )


def _asset(name: str) -> str:
    return (files("protofast.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """The script's expression for the content security policy, under which nothing else may run."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
