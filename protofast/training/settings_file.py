"""Reading settings from TOML, overriding them, and naming what is wrong and where.

A file may start from another with ``recipe = "paper"`` at its top: the other is read first, and
what the file says goes over it, key by key.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import typing
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from protofast.errors import SettingsError
from protofast.training.settings import Settings

Tree = dict[str, Any]
Key = tuple[str, ...]
_RECIPES = resources.files("protofast.training") / "recipes"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+(\s*\.\s*[A-Za-z0-9_-]+)*")


def recipes() -> list[str]:
    """Names of the recipes that come with protofast."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in _RECIPES.iterdir()
        if entry.name.endswith(".toml")
    )


def load_settings(recipe_or_path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a recipe or a file, with overrides.

    Args:
        recipe_or_path: Name of a recipe (``paper``) or path of a TOML file.
        overrides: ``a.b=c`` each; ``c`` is read as a TOML value, else as text. ``a.b=`` (nothing
            after it) takes the key away, so that its default holds.

    Raises:
        SettingsError: One line that names the file and line, or the override, the key, the value,
            what is allowed, and for an unknown key the closest known one.
    """
    tree: Tree = {}
    places: dict[Key, str] = {}
    _read_into(tree, places, str(recipe_or_path), ())
    for override in overrides:
        _override(tree, places, override)
    return _validated(tree, places, f"settings {recipe_or_path}")


def settings_text(settings: Settings) -> str:
    """The settings as TOML, defaults included; reads back equal."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def differences(one: Settings, other: Settings) -> list[str]:
    """Keys whose values differ, each as ``key (a, now b)``."""
    before, now = (dict(_leaves(each.model_dump(mode="json"))) for each in (one, other))
    keys = dict.fromkeys((*before, *now))
    return [
        f"{'.'.join(key)} ({before.get(key)!r}, now {now.get(key)!r})"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def _read_into(tree: Tree, places: dict[Key, str], name: str, above: tuple[str, ...]) -> None:
    if name in above:
        raise SettingsError(f"recipe {name} starts from itself ({' → '.join((*above, name))})")
    label, text = _text_of(name)
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{label} is not valid TOML: {error}") from error
    base = read.pop("recipe", None)
    if base is not None:
        if not isinstance(base, str):
            raise SettingsError(f"{label}: recipe must be the name of a recipe, got {base!r}")
        _read_into(tree, places, base, (*above, name))
    for key, value in _leaves(read):
        _put(tree, key, value)
    lines = _lines_of_keys(text)
    for key in _tables_and_leaves(read):
        places[key] = f"{label}:{lines[key]}" if key in lines else label


def _text_of(name: str) -> tuple[str, str]:
    """What to call the recipe or file in messages, and its text."""
    if name in recipes():
        return f"{name}.toml", (_RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    path = Path(name)
    try:
        return name, path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        known = recipes()
        if path.suffix == ".toml" or len(path.parts) > 1:
            raise SettingsError(
                f"no settings file {name}; give one, or one of the recipes {', '.join(known)}"
            ) from error
        raise SettingsError(
            f"unknown recipe {name!r}{_closest(name, known)}; recipes are {', '.join(known)}"
        ) from error
    except IsADirectoryError as error:
        raise SettingsError(f"{name} is a folder; give a TOML file") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name} is not a text file in UTF-8; give a TOML file") from error


def _override(tree: Tree, places: dict[Key, str], override: str) -> None:
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals or not _BARE_KEY.fullmatch(name):
        raise SettingsError(f"--set {override}: expected key=value, such as training.batch_size=32")
    key = tuple(part.strip() for part in name.split("."))
    places[key] = f"--set {override}"
    if not text.strip():
        _remove(tree, key)
        return
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = tree
    for depth, part in enumerate(key[:-1], start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict) or (_field(key[:depth]) and not _is_table(key[:depth])):
            raise SettingsError(f"--set {override}: {'.'.join(key[:depth])} has no keys of its own")
    if isinstance(value, dict):
        raise SettingsError(f"--set {override}: set one key at a time")
    if isinstance(table.get(key[-1]), dict) or _is_table(key):
        raise SettingsError(f"--set {override}: {name} is a table; set one of its keys")
    table[key[-1]] = value


def _put(tree: Tree, key: Key, value: Any) -> None:
    for part in key[:-1]:
        below = tree.get(part)
        if not isinstance(below, dict):
            below = tree[part] = {}
        tree = below
    tree[key[-1]] = value


def _remove(tree: Tree, key: Key) -> None:
    for part in key[:-1]:
        below = tree.get(part)
        if not isinstance(below, dict):
            return
        tree = below
    tree.pop(key[-1], None)


def _leaves(tree: Tree, above: Key = ()) -> Iterator[tuple[Key, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


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


def _validated(tree: Tree, places: dict[Key, str], default_place: str) -> Settings:
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(details) for details in error.errors()]
    key, message = problems[0]
    place = _place(places, key) or default_place
    others = len({found for found, _ in problems}) - 1
    more = f" (and {others} more)" if others else ""
    raise SettingsError(f"{place}: {message}{more}")


def _place(places: dict[Key, str], key: Key) -> str | None:
    """Where the key, or else what is nearest above or below it, was set."""
    for length in range(len(key), 0, -1):
        if key[:length] in places:
            return places[key[:length]]
    return next((place for other, place in places.items() if other[: len(key)] == key), None)


def _problem(details: Any) -> tuple[Key, str]:
    """Key and message of one of pydantic's findings."""
    # Locations also name the alternatives of a union; those are no keys.
    key = _known_part(tuple(str(part) for part in details["loc"]))
    if details["type"] == "combination":
        inner = details["ctx"]["key"]
        key = (*key, *inner.split(".")) if inner else key
        return key, f"{'.'.join(key)}: {details['ctx']['problem']}"
    name = ".".join(key)
    if details["type"] == "extra_forbidden":
        return key, f"unknown setting {name}{_closest(name, _all_keys())}"
    return key, f"{name} = {_shown(details['input'])} is not allowed: {_allowed(key, details)}"


def _known_part(location: Key) -> Key:
    model: Any = Settings
    key: list[str] = []
    for part in location:
        key.append(part)
        field = model.model_fields.get(part)
        if field is None or not _is_model(field.annotation):
            break
        model = field.annotation
    return tuple(key)


def _allowed(key: Key, details: Any) -> str:
    """What a key may be: from its description, if it has one, else from its type or the finding."""
    field = _field(key)
    if field is not None and field.description:
        return f"must be {field.description}"
    if field is not None and typing.get_origin(field.annotation) is typing.Literal:
        return f"must be one of {', '.join(repr(v) for v in typing.get_args(field.annotation))}"
    message: str = details["msg"].replace("Input should be", "must be")
    return message[0].lower() + message[1:]


def _field(key: Key) -> FieldInfo | None:
    model: Any = Settings
    for part in key[:-1]:
        field = model.model_fields.get(part)
        if field is None or not _is_model(field.annotation):
            return None
        model = field.annotation
    found: FieldInfo | None = model.model_fields.get(key[-1])
    return found


def _is_table(key: Key) -> bool:
    field = _field(key)
    return field is not None and _is_model(field.annotation)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _all_keys(model: type[BaseModel] = Settings, above: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(above + name)
        if _is_model(field.annotation):
            keys += _all_keys(typing.cast(type[BaseModel], field.annotation), f"{above}{name}.")
    return keys


def _closest(name: str, known: list[str]) -> str:
    found = difflib.get_close_matches(name, known, 1, 0.5)
    if not found:  # the right word in the wrong table
        last = name.rsplit(".", 1)[-1]
        by_last = {key.rsplit(".", 1)[-1]: key for key in known}
        found = [by_last[word] for word in difflib.get_close_matches(last, list(by_last), 1, 0.6)]
    return f"; did you mean {found[0]}?" if found else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
