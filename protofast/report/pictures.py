"""The pictures of the explanations, as the page embeds them.

Every picture and every heat map stands in the page once, as an SVG ``<image>`` with an id, and is
shown by ``<use>`` wherever it is needed, whole or cut to a patch by the viewBox; boxes are
rectangles in the same coordinates, those of the model's input.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from protofast.report import words
from protofast.report.files import Json, RunFiles

_KINDS = {".jpg": "image/jpeg", ".png": "image/png"}


@dataclass(frozen=True)
class Picture:
    """One picture of the data set.

    Attributes:
        id: Of the element that holds it.
        width: Of the picture as the model sees it, in pixels; boxes refer to it.
        height: The same.
        uri: Its data, or None if the file is gone.
        name: What the data set calls it.
        label: Name of its class.
        class_index: The same as a number.
    """

    id: str
    width: int
    height: int
    uri: str | None
    name: str
    label: str
    class_index: int

    @property
    def file(self) -> str:
        """The last part of the name: the folders before it usually repeat the class."""
        return self.name.rstrip("/").rpartition("/")[2] or self.name


@dataclass(frozen=True)
class Heat:
    """A heat map, as large as the picture that it lies on."""

    id: str
    width: int
    height: int
    uri: str


@dataclass(frozen=True)
class Box:
    """A rectangle on a picture, in the model's pixels."""

    x: int
    y: int
    width: int
    height: int

    @staticmethod
    def of(corners: Iterable[int]) -> Box:
        """From [x0, y0, x1, y1]."""
        x0, y0, x1, y1 = (int(value) for value in corners)
        return Box(x0, y0, max(1, x1 - x0), max(1, y1 - y0))


class Pictures:
    """All pictures of a run's explanations, by their keys in the summary."""

    def __init__(self, run: RunFiles, classes: list[str]) -> None:
        self._run = run
        self.missing = 0
        self.by_key: dict[str, Picture] = {}
        self._heats: dict[str, Heat | None] = {}
        summary = run.explanations or {}
        entries: dict[str, Json] = summary.get("images", {})
        for number, (key, entry) in enumerate(entries.items()):
            height, width = entry["size"]
            label = int(entry["label"])
            self.by_key[key] = Picture(
                id=f"i{number}",
                width=int(width),
                height=int(height),
                uri=self.uri(entry["file"]),
                name=words.name(entry["name"]),
                label=classes[label] if 0 <= label < len(classes) else f"class {label}",
                class_index=label,
            )

    def __getitem__(self, key: str) -> Picture:
        return self.by_key[key]

    def __iter__(self) -> Iterable[Picture]:
        return iter(self.by_key.values())

    @property
    def heats(self) -> list[Heat]:
        """All heat maps that were asked for."""
        return [heat for heat in self._heats.values() if heat is not None]

    def heat(self, name: str | None, on: Picture) -> str | None:
        """The id of a heat map on a picture, by the name of its file; None if there is none."""
        if name is None:
            return None
        if name not in self._heats:
            uri = self.uri(name)
            heat = None if uri is None else Heat(f"h{len(self._heats)}", on.width, on.height, uri)
            self._heats[name] = heat
        found = self._heats[name]
        return None if found is None else found.id

    def uri(self, name: str | None) -> str | None:
        """A file of the explanations as a data URI; None if there is none."""
        if name is None:
            return None
        content = self._run.picture(name)
        kind = _KINDS.get(name[-4:].lower())
        if content is None or kind is None:
            self.missing += 1
            return None
        return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
