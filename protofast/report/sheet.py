"""The sheet that all reports are written on: one file, no network, one script that may run."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from protofast.report import words


def render_sheet(
    template: str, *, styles: Sequence[str], scripts: Sequence[str], **values: object
) -> str:
    """A report as HTML.

    Args:
        template: One that extends ``sheet.html``.
        styles: Style sheets among the templates; they become one.
        scripts: Scripts among the templates, in order; they become one, and the content security
            policy lets nothing else run.
        values: What the template writes, all of it escaped; a name that it does not find here is
            an error.
    """
    script = "".join(_asset(name) for name in scripts)
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup("\n").join(Markup(_asset(name)) for name in styles),
            script=Markup(script),
            script_hash=_hash(script),
            **values,
        )
    )


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("protofast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter_ in (words.name, words.number, words.short, words.percent):
        environment.filters[filter_.__name__] = filter_
    environment.globals["count"] = words.count
    return environment


def _asset(name: str) -> str:
    return (files("protofast.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """The script's expression for the content security policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
