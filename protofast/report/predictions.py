"""Explained predictions, ready to be shown: contributions as steps that lead to the logit."""

from __future__ import annotations

from dataclasses import dataclass

from protofast.report.files import Json
from protofast.report.pictures import Box, Picture, Pictures


@dataclass(frozen=True)
class Bar:
    """Where a step starts and how long it is, in percent of the drawing's width."""

    start: float
    length: float
    negative: bool


@dataclass(frozen=True)
class Term:
    """One prototype's part in a logit.

    Attributes:
        rank: 1 for the largest.
        prototype: Its number.
        prototype_class: Name of its class.
        own: Whether that is the class explained, or prototypes have none.
        box: Where it looks on the image.
        heat: Id of its heat map on the image.
        source: The training image that the prototype is a patch of; None if it was not projected.
        source_box: The patch.
    """

    rank: int
    prototype: int
    prototype_class: str
    own: bool
    similarity: float
    weight: float
    contribution: float
    box: Box
    heat: str | None
    source: Picture | None
    source_box: Box | None
    bar: Bar


@dataclass(frozen=True)
class Rest:
    """What the prototypes not shown add together."""

    prototypes: int
    contribution: float
    bar: Bar


@dataclass(frozen=True)
class ClassView:
    """One class's logit, step by step."""

    name: str
    role: str  # "predicted", "true" or "second"
    logit: float
    probability: float
    terms: list[Term]
    own: Rest
    others: Rest
    total: Bar
    zero: float  # where 0 lies, in percent


@dataclass(frozen=True)
class Activated:
    """One of the prototypes that are most similar to some patch of the image."""

    prototype: int
    prototype_class: str
    similarity: float


@dataclass(frozen=True)
class PredictionView:
    """One explained test image."""

    number: int
    picture: Picture
    right: bool
    predicted: str
    label: str
    classes: list[ClassView]
    classed: bool  # whether prototypes belong to classes
    activated: list[Activated]


def prediction_views(summary: Json, classes: list[str], pictures: Pictures) -> list[PredictionView]:
    """All explained predictions of a summary."""
    return [
        _view(number, entry, summary["prototypes"], classes, pictures)
        for number, entry in enumerate(summary["predictions"])
    ]


def _view(
    number: int, entry: Json, prototypes: list[Json], classes: list[str], pictures: Pictures
) -> PredictionView:
    scale = _Scale.of(entry["classes"])
    views = []
    for place, part in enumerate(entry["classes"]):
        role = "predicted" if place == 0 else "second"
        if place > 0 and part["class"] == entry["label"]:
            role = "true"
        picture = pictures[entry["image"]]
        views.append(_class_view(part, role, scale, prototypes, classes, pictures, picture))
    return PredictionView(
        number=number,
        picture=pictures[entry["image"]],
        right=bool(entry["right"]),
        predicted=classes[entry["predicted"]],
        label=classes[entry["label"]],
        classes=views,
        classed=any(prototype["class"] is not None for prototype in prototypes),
        activated=[
            Activated(found["prototype"], _class_name(found["class"], classes), found["similarity"])
            for found in entry.get("activated", [])
        ],
    )


def _class_name(owner: int | None, classes: list[str]) -> str:
    return "no class" if owner is None else classes[owner]


def _class_view(
    part: Json,
    role: str,
    scale: _Scale,
    prototypes: list[Json],
    classes: list[str],
    pictures: Pictures,
    picture: Picture,
) -> ClassView:
    position = 0.0
    terms = []
    for rank, term in enumerate(part["shown"], start=1):
        entry = prototypes[term["prototype"]]
        source = entry["source"]
        owner = entry["class"]
        terms.append(
            Term(
                rank=rank,
                prototype=term["prototype"],
                prototype_class=_class_name(owner, classes),
                own=owner in (None, part["class"]),
                similarity=term["similarity"],
                weight=term["weight"],
                contribution=term["contribution"],
                box=Box.of(term["box"]),
                heat=pictures.heat(term["heatmap"], picture),
                source=None if source is None else pictures[source["image"]],
                source_box=None if source is None else Box.of(source["box"]),
                bar=scale.bar(position, position + term["contribution"]),
            )
        )
        position += term["contribution"]
    rests = []
    for key in ("own", "others"):
        contribution = part[key]["contribution"]
        rests.append(
            Rest(
                part[key]["prototypes"],
                contribution,
                scale.bar(position, position + contribution),
            )
        )
        position += contribution
    return ClassView(
        name=classes[part["class"]],
        role=role,
        logit=part["logit"],
        probability=part["probability"],
        terms=terms,
        own=rests[0],
        others=rests[1],
        total=scale.bar(0.0, part["logit"]),
        zero=scale.at(0.0),
    )


@dataclass(frozen=True)
class _Scale:
    """The range that all steps of one image have in common, so that its classes can be compared."""

    low: float
    high: float

    @staticmethod
    def of(parts: list[Json]) -> _Scale:
        reached = [0.0]
        for part in parts:
            position = 0.0
            steps = [term["contribution"] for term in part["shown"]]
            for step in (*steps, part["own"]["contribution"], part["others"]["contribution"]):
                position += step
                reached.append(position)
            reached.append(part["logit"])
        return _Scale(min(reached), max(reached))

    def at(self, value: float) -> float:
        span = self.high - self.low
        return 0.0 if span <= 0 else round(100 * (value - self.low) / span, 2)

    def bar(self, start: float, end: float) -> Bar:
        left, right = self.at(min(start, end)), self.at(max(start, end))
        return Bar(left, round(right - left, 2), end < start)
