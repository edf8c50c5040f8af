"""The prototypes, ready to be shown by class."""

from __future__ import annotations

from dataclasses import dataclass

from protofast.report import words
from protofast.report.files import Json
from protofast.report.pictures import Box, Picture, Pictures

# What a sign of ill health is called, and what it means.
FLAGS = {
    "duplicate": (
        "duplicate",
        "It shows the same patch of the same image as another prototype, so one is superfluous.",
    ),
    "collapsed": (
        "collapsed",
        "It is nearly the same vector as another prototype, so the two say the same.",
    ),
    "never_wins": (
        "never wins",
        "For no training image (of its class) is it the most similar prototype (of that class).",
    ),
    "empty_class": (
        "empty class",
        "There is no training image of its class.",
    ),
    "strayed": (
        "strayed",
        "It no longer equals the patch it was projected on; its similarity to its source is "
        "what is left.",
    ),
    "not_projected": (
        "not projected",
        "It is no patch of a training image; what is shown are the patches nearest to it.",
    ),
}


@dataclass(frozen=True)
class Flag:
    """A sign of ill health, in words."""

    key: str
    name: str
    meaning: str


@dataclass(frozen=True)
class Near:
    """A picture that lies near a prototype."""

    picture: Picture
    box: Box
    distance: float | None
    similarity: float | None
    own: bool  # of the prototype's class


@dataclass(frozen=True)
class PrototypeView:
    """One prototype.

    Attributes:
        picture: Its source image, or, if it was not projected, the nearest training image; None
            without any.
        box: Where it looks on that picture.
        heat: Id of its heat map on the source image.
        search: What the search box looks at, in lower case.
    """

    number: int
    class_index: int
    class_name: str
    weight: float | None
    picture: Picture | None
    box: Box | None
    heat: str | None
    source: Json | None
    nearest_train: list[Near]
    nearest_test: list[Near]
    wins: int
    of: int
    flags: list[Flag]
    same_as: list[int]
    same_as_count: int
    search: str

    @property
    def classed(self) -> bool:
        """Whether it belongs to a class."""
        return self.class_index >= 0

    @property
    def own_share(self) -> tuple[int, int]:
        """How many of the nearest pictures show the prototype's class, of how many.

        Its own source is left out: that it shows the prototype's class says nothing.
        """
        own = None if self.source is None else self.picture
        near = [one for one in self.nearest_train if one.picture is not own] + self.nearest_test
        return sum(one.own for one in near), len(near)


def prototype_views(summary: Json, classes: list[str], pictures: Pictures) -> list[PrototypeView]:
    """All prototypes of a summary, by class and number."""
    views = [_view(entry, classes, pictures) for entry in summary["prototypes"]]
    return sorted(views, key=lambda view: (view.class_index, view.number))


def _view(entry: Json, classes: list[str], pictures: Pictures) -> PrototypeView:
    owner = -1 if entry["class"] is None else int(entry["class"])
    name = "no class" if owner < 0 else classes[owner]
    near = {
        which: [_near(row, owner, pictures) for row in entry["nearest"].get(which, [])]
        for which in ("train", "test")
    }
    source = entry["source"]
    picture = box = None
    if source is not None:
        picture, box = pictures[source["image"]], Box.of(source["box"])
    elif near["train"]:
        picture, box = near["train"][0].picture, near["train"][0].box
    flags = [Flag(key, *FLAGS.get(key, (words.name(key), ""))) for key in entry["flags"]]
    search = " ".join(
        [f"prototype {entry['prototype']}", name, *(flag.name for flag in flags)]
        + ([picture.name] if picture else [])
    )
    return PrototypeView(
        number=int(entry["prototype"]),
        class_index=owner,
        class_name=name,
        weight=entry["weight"],
        picture=picture,
        box=box,
        heat=None if picture is None else pictures.heat(entry["heatmap"], picture),
        source=source,
        nearest_train=near["train"],
        nearest_test=near["test"],
        wins=int(entry["wins"]),
        of=int(entry["of"]),
        flags=flags,
        same_as=[int(other) for other in entry["same_as"]],
        same_as_count=int(entry.get("same_as_count", len(entry["same_as"]))),
        search=search.lower(),
    )


def _near(row: Json, owner: int, pictures: Pictures) -> Near:
    picture = pictures[row["image"]]
    return Near(
        picture=picture,
        box=Box.of(row["box"]),
        distance=row["distance"],
        similarity=row["similarity"],
        own=owner < 0 or picture.class_index == owner,
    )
