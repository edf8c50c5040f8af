"""Reading settings from TOML, overriding them, and naming what is wrong and where.

A file may start from another with ``recipe = "paper"`` at its top: the other is read first, and
what the file says goes over it, key by key. With a list, ``recipe = ["demo", "adversarial"]``, each
goes over those before it. A *part* (``adversarial``, ``masking``, ...) is half a recipe: it says
one thing, and goes over any recipe.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

import tomli_w

from protofast.errors import SettingsError
from protofast.settings_tree import Key, SettingsTree, Tree, closest, leaves
from protofast.training.settings import Settings

Kind = Literal["recipe", "part"]
PLACES = ("root", "test_root", "groups")
"""Keys of the data's settings that are paths."""

_RECIPES = resources.files("protofast.training") / "recipes"
_PARTS = _RECIPES / "parts"


def recipes() -> list[str]:
    """Names of the recipes that come with protofast."""
    return _names(_RECIPES)


def recipe_parts() -> list[str]:
    """Names of the parts that come with protofast and go over any recipe."""
    return _names(_PARTS)


def _names(folder: Traversable) -> list[str]:
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def load_settings(
    recipe_or_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    parts: Sequence[str | Path] = (),
) -> Settings:
    """Settings from a recipe or a file, with parts that go over it, and with overrides.

    Args:
        recipe_or_path: Name of a recipe (``paper``) or path of a TOML file.
        overrides: ``a.b=c`` each; ``c`` is read as a TOML value, else as text. ``a.b=`` (nothing
            after it) takes the key away, so that its default holds.
        parts: Names of parts (``adversarial``) or paths of TOML files, each over those before it.

    Raises:
        SettingsError: One line that names the file and line, or the override, the key, the value,
            what is allowed, and for an unknown key the closest known one.
    """
    into = SettingsTree(Settings, example="training.batch_size=32")
    _read_into(into, str(recipe_or_path), ())
    for part in parts:
        _read_into(into, str(part), (), kind="part")
    for override in overrides:
        into.override(override)
    return into.validated(f"settings {recipe_or_path}")


def anchored(settings: Settings) -> Settings:
    """The settings with absolute paths: a run can be evaluated and resumed from any folder."""
    paths = {
        key: str(Path(value).absolute())
        for key in PLACES
        if (value := getattr(settings.data, key)) is not None
    }
    return settings.model_copy(update={"data": settings.data.model_copy(update=paths)})


def settings_text(settings: Settings) -> str:
    """The settings as TOML, defaults included; reads back equal."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def differences(one: Settings, other: Settings) -> list[str]:
    """Keys whose values differ, each as ``key (a, now b)``."""
    before, now = (dict(leaves(each.model_dump(mode="json"))) for each in (one, other))
    keys = dict.fromkeys((*before, *now))
    return [
        f"{'.'.join(key)} ({before.get(key)!r}, now {now.get(key)!r})"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def _read_into(
    into: SettingsTree[Settings],
    name: str,
    above: tuple[str, ...],
    *,
    kind: Kind = "recipe",
) -> None:
    if name in above:
        raise SettingsError(f"recipe {name} starts from itself ({' → '.join((*above, name))})")
    label, text = _text_of(name, kind)
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{label} is not valid TOML: {error}") from error
    for number, base in enumerate(_bases(label, read)):
        base_kind: Kind = "part" if number else "recipe"
        _read_into(into, base, (*above, name), kind=base_kind)
    for key, value in leaves(read):
        into.put(key, value)
    lines = _lines_of_keys(text)
    for key in _tables_and_leaves(read):
        into.places[key] = f"{label}:{lines[key]}" if key in lines else label


def _bases(label: str, read: Tree) -> list[str]:
    """What a file starts from: a recipe, and parts that go over it; taken out of ``read``."""
    named = read.pop("recipe", [])
    bases = [named] if isinstance(named, str) else named
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise SettingsError(
            f"{label}: recipe must be the name of a recipe, or a list of a recipe and parts that "
            f"go over it, got {named!r}"
        )
    return bases


def _text_of(name: str, kind: Kind) -> tuple[str, str]:
    """What to call the recipe, part or file in messages, and its text."""
    known, others = (recipes(), recipe_parts()) if kind == "recipe" else (recipe_parts(), recipes())
    if name in known:
        folder, file = (_RECIPES if kind == "recipe" else _PARTS), f"{name}.toml"
        return file, (folder / file).read_text(encoding="utf-8")
    path = Path(name)
    try:
        return name, path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if path.suffix == ".toml" or len(path.parts) > 1:
            raise SettingsError(
                f"no settings file {name}; give one, or one of the {kind}s {', '.join(known)}"
            ) from error
        if name in others and kind == "recipe":
            raise SettingsError(
                f"{name!r} is a part, which goes over a recipe: protofast train RECIPE --with "
                f"{name}; recipes are {', '.join(known)}"
            ) from error
        if name in others:
            raise SettingsError(
                f"{name!r} is a whole recipe, not a part; parts are {', '.join(known)}"
            ) from error
        raise SettingsError(
            f"unknown {kind} {name!r}{closest(name, known)}; {kind}s are {', '.join(known)}"
        ) from error
    except IsADirectoryError as error:
        raise SettingsError(f"{name} is a folder; give a TOML file") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name} is not a text file in UTF-8; give a TOML file") from error


def _tables_and_leaves(tree: Tree, above: Key = ()) -> Iterator[Key]:
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _tables_and_leaves(value, (*above, key))


def _lines_of_keys(text: str) -> dict[Key, int]:
    """The line of each table and key, for plainly written TOML (no quoted keys, one key a line)."""
    lines: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(text.splitlines(), start=1):
        head = re.match(r"\s*\[\[?\s*([A-Za-z0-9_.\s-]+?)\s*\]", line)
        pair = re.match(r"\s*([A-Za-z0-9_-]+(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=", line)
        if head:
            table = tuple(part.strip() for part in head.group(1).split("."))
            lines.setdefault(table, number)
        elif pair:
            key = (*table, *(part.strip() for part in pair.group(1).split(".")))
            lines.setdefault(key, number)
            # keys of inline tables stand on the same line
            for inner in re.findall(r"[{,]\s*([A-Za-z0-9_-]+)\s*=", line[pair.end() :]):
                lines.setdefault((*key, inner), number)
    return lines
