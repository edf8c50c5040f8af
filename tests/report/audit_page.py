"""The audit that a report is made of, changed by a test, and the report that comes out."""

import json
import re
from pathlib import Path
from typing import Any

from html_page import Page

from protofast.report import build_audit_report

MINUS = "\N{MINUS SIGN}"


def page_of(folder: Path) -> Page:
    """The report of the folder, built anew."""
    return Page(build_audit_report(folder).read_text(encoding="utf-8"))


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "audit.json").read_text())


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "audit.json").write_text(json.dumps(content))


def result_of(content: dict[str, Any], audit: str, protocol: str, model: int = 0) -> dict[str, Any]:
    (found,) = [
        one
        for one in content["audits"]
        if (one["audit"], one["protocol"], one["model"]) == (audit, protocol, model)
    ]
    return found


def number_of(
    content: dict[str, Any], audit: str, protocol: str, key: str, model: int = 0
) -> dict[str, Any]:
    numbers = result_of(content, audit, protocol, model)["numbers"]
    return next(number for number in numbers if number["key"] == key)


def plain(text: str) -> str:
    """With ordinary spaces only."""
    return re.sub(r"\s+", " ", text)


def paper_table(html: str, name: str) -> dict[str, dict[str, str]]:
    """Each of our rows as plain text, by protocol and model."""
    tables = re.findall(r'<figure class="paper-table">.*?</figure>', html, re.S)
    (table,) = [table for table in tables if name in table]
    rows: dict[str, dict[str, str]] = {}
    for group in table.split("<tbody>")[1:]:
        shown = re.search(r'<tr class="group">.*?</tr>', group, re.S)
        protocol = "" if shown is None else plain(Page(shown[0]).text).split()[0]
        for row in re.findall(r"<tr>.*?</tr>", group, re.S):
            text = plain(Page(row).text)
            rows.setdefault(protocol, {})[text.split()[0]] = text
    return rows
