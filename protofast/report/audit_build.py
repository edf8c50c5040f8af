"""Building ``audit.html`` from ``audit.json`` and the pictures and tables beside it."""

from __future__ import annotations

from pathlib import Path

from protofast.files import write_atomically
from protofast.report.audit_files import read_audit
from protofast.report.audit_page import page_of
from protofast.report.audit_subjects import amount, interval
from protofast.report.build import Report
from protofast.report.sheet import render_sheet

_STYLES = ("page.css", "sections.css", "audit.css")
_SCRIPTS = ("sheet.js", "audit.js")


def build_audit_report(folder: Path | str) -> Path:
    """The same as :func:`write_audit_report`; returns the report's path alone."""
    return write_audit_report(folder).path


def write_audit_report(folder: Path | str) -> Report:
    """Writes ``audit.html`` into an audit folder, from the files that are there.

    A number, picture, table or audit that is damaged or missing is left out, and the report says
    so.

    Args:
        folder: The folder that ``protofast audit`` wrote.

    Returns:
        The report's path, and what is damaged.

    Raises:
        RunFolderError: There is no such folder, or its audit.json is missing or unreadable.
        OSError: The report cannot be written; an older one is still there.
    """
    audit = read_audit(Path(folder))
    page = page_of(audit)
    path = audit.folder / "audit.html"
    html = render_sheet(
        "audit.html",
        styles=_STYLES,
        scripts=_SCRIPTS,
        page=page,
        amount=amount,
        interval=interval,
    )
    write_atomically(path, html)
    return Report(path, tuple(audit.problems))
