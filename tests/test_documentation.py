"""What the documentation shows works: doctests, and the Python code in README and docs."""

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import protofast
from protofast.cli.app import app
from protofast.cli.train import data_overrides
from protofast.training import load_settings, recipes

ROOT = Path(__file__).parent.parent
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
MODULES = [
    module.name
    for module in pkgutil.walk_packages(protofast.__path__, "protofast.")
    if not re.search(r"\.(__main__|_C|lib\w+)$", module.name)  # programs and compiled libraries
]
# Pages whose code runs as it stands; the other pages' code needs a trained run or images.
PAGES = [
    "README.md",
    "docs/layer.md",
    "docs/alignment.md",
    "docs/attacks.md",
    "docs/head_on_stomach.md",
    "docs/misalignment.md",
    "docs/export.md",
]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert results.failed == 0


@pytest.mark.parametrize("page", PAGES)
def test_code_on_a_page_runs(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_and_pictures_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} points to {target}"


def _shown_commands(file: Path) -> list[str]:
    """What a page, recipe or module tells the reader to type, without the word protofast."""
    text = file.read_text(encoding="utf-8")
    found = re.findall(r"`protofast ([a-z][^`\n]*)`", text)
    found += re.findall(r"To run it: protofast (.*)", text)
    found += re.findall(r"torchrun [^`\n]*-m protofast\.cli ([^`\n]*)", text)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    blocks += re.findall(r"Examples:\n((?: +protofast .*\n)+)", text)
    for block in blocks:
        found += re.findall(r"^(?:.*&& )? *protofast (.*)", block, re.M)
    return found


SHOWN = [
    pytest.param(command, id=f"{file.relative_to(ROOT)}: {command}")
    for pattern in ("*.md", "docs/*.md", "protofast/**/*.toml", "protofast/**/*.py")
    for file in sorted(ROOT.glob(pattern))
    if file.name != "CHANGELOG.md"
    for command in _shown_commands(file)
]


@pytest.mark.parametrize("shown", SHOWN)
def test_commands_that_are_shown_are_understood(shown: str) -> None:
    """Parsed, not run: the command and its options are there, and so are recipe and settings."""
    name, *arguments = shlex.split(shown, comments=True)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    if not arguments:
        return  # spoken of, not shown
    values = command.make_context(name, arguments).params
    recipe = values.get("recipe")
    if recipe is not None and recipe in recipes():
        overrides = [*data_overrides(values["data"]), *(values["overrides"] or [])]
        load_settings(recipe, overrides, parts=values["parts"] or [])


def test_commands_are_found() -> None:
    assert len(SHOWN) > 30
