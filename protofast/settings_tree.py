"""Settings on their way into a pydantic model: overriding them, and naming what is wrong and where.

Training and the audits read theirs through it, so that both complain in the same words.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import typing
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from protofast.errors import SettingsError

Tree = dict[str, Any]
Key = tuple[str, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+(\s*\.\s*[A-Za-z0-9_-]+)*")


class SettingsTree(Generic[ModelT]):
    """Values by key, and where each of them was set, for a model of nested tables.

    Args:
        root: The model; its tables are fields whose type is a model again.
        example: An override as it should look, for the message about one that does not.
    """

    def __init__(self, root: type[ModelT], *, example: str) -> None:
        self.root = root
        self.tree: Tree = {}
        self.places: dict[Key, str] = {}
        self._example = example

    def put(self, key: Key, value: Any) -> None:
        """Sets a value; what stood where a table is needed now gives way."""
        tree = self.tree
        for part in key[:-1]:
            below = tree.get(part)
            if not isinstance(below, dict):
                below = tree[part] = {}
            tree = below
        tree[key[-1]] = value

    def override(self, override: str) -> None:
        """Sets ``a.b=c``: ``c`` is a TOML value, else text; ``a.b=`` takes the key away.

        Raises:
            SettingsError: It is not of this form, or sets a table.
        """
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals or not _BARE_KEY.fullmatch(name):
            raise SettingsError(f"--set {override}: expected key=value, such as {self._example}")
        key = tuple(part.strip() for part in name.split("."))
        self.places[key] = f"--set {override}"
        if not text.strip():
            self._remove(key)
            return
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        table = self.tree
        for depth, part in enumerate(key[:-1], start=1):
            table = table.setdefault(part, {})
            is_value = self._field(key[:depth]) and not self._is_table(key[:depth])
            if not isinstance(table, dict) or is_value:
                raise SettingsError(
                    f"--set {override}: {'.'.join(key[:depth])} has no keys of its own"
                )
        if isinstance(value, dict):
            raise SettingsError(f"--set {override}: set one key at a time")
        if isinstance(table.get(key[-1]), dict) or self._is_table(key):
            raise SettingsError(f"--set {override}: {name} is a table; set one of its keys")
        table[key[-1]] = value

    def validated(self, default_place: str) -> ModelT:
        """The model.

        Args:
            default_place: What to blame for a value that was set nowhere.

        Raises:
            SettingsError: One line that names the place, the key, the value, what is allowed, and
                for an unknown key the closest known one.
        """
        try:
            return self.root.model_validate(self.tree)
        except ValidationError as error:
            problems = [self._problem(details) for details in error.errors()]
        key, message = problems[0]
        place = self._place(key) or default_place
        others = len({found for found, _ in problems}) - 1
        more = f" (and {others} more)" if others else ""
        raise SettingsError(f"{place}: {message}{more}")

    def _remove(self, key: Key) -> None:
        tree = self.tree
        for part in key[:-1]:
            below = tree.get(part)
            if not isinstance(below, dict):
                return
            tree = below
        tree.pop(key[-1], None)

    def _place(self, key: Key) -> str | None:
        """Where the key, or else what is nearest above or below it, was set."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.places:
                return self.places[key[:length]]
        below = (place for other, place in self.places.items() if other[: len(key)] == key)
        return next(below, None)

    def _problem(self, details: Any) -> tuple[Key, str]:
        """Key and message of one of pydantic's findings."""
        # Locations also name the alternatives of a union; those are no keys.
        key = self._known_part(tuple(str(part) for part in details["loc"]))
        if details["type"] == "combination":
            inner = details["ctx"]["key"]
            key = (*key, *inner.split(".")) if inner else key
            return key, f"{'.'.join(key)}: {details['ctx']['problem']}"
        name = ".".join(key)
        if details["type"] == "extra_forbidden":
            return key, f"unknown setting {name}{closest(name, _all_keys(self.root))}"
        allowed = self._allowed(key, details)
        return key, f"{name} = {_shown(details['input'])} is not allowed: {allowed}"

    def _known_part(self, location: Key) -> Key:
        model: Any = self.root
        key: list[str] = []
        for part in location:
            key.append(part)
            field = model.model_fields.get(part)
            if field is None or not _is_model(field.annotation):
                break
            model = field.annotation
        return tuple(key)

    def _allowed(self, key: Key, details: Any) -> str:
        """What a key may be: from its description, else from its type or the finding."""
        field = self._field(key)
        if field is not None and field.description:
            return f"must be {field.description}"
        if field is not None and typing.get_origin(field.annotation) is typing.Literal:
            return f"must be one of {', '.join(repr(v) for v in typing.get_args(field.annotation))}"
        message: str = details["msg"].replace("Input should be", "must be")
        return message[0].lower() + message[1:]

    def _field(self, key: Key) -> FieldInfo | None:
        model: Any = self.root
        for part in key[:-1]:
            field = model.model_fields.get(part)
            if field is None or not _is_model(field.annotation):
                return None
            model = field.annotation
        found: FieldInfo | None = model.model_fields.get(key[-1])
        return found

    def _is_table(self, key: Key) -> bool:
        field = self._field(key)
        return field is not None and _is_model(field.annotation)


def leaves(tree: Tree, above: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value with its key; an empty table counts as a value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def closest(name: str, known: list[str]) -> str:
    """`; did you mean ...?`, or nothing where no known name is like it."""
    found = difflib.get_close_matches(name, known, 1, 0.5)
    if not found:  # the right word in the wrong table
        last = name.rsplit(".", 1)[-1]
        by_last = {key.rsplit(".", 1)[-1]: key for key in known}
        found = [by_last[word] for word in difflib.get_close_matches(last, list(by_last), 1, 0.6)]
    return f"; did you mean {found[0]}?" if found else ""


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _all_keys(model: type[BaseModel], above: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(above + name)
        if _is_model(field.annotation):
            keys += _all_keys(typing.cast(type[BaseModel], field.annotation), f"{above}{name}.")
    return keys


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
