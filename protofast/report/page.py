"""What the page says, in the order in which it says it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from protofast.report import words
from protofast.report.charts import Chart, charts
from protofast.report.confusion import ConfusionView, confusion_view
from protofast.report.files import Json, RunFiles
from protofast.report.notices import Notice, folder_argument, notices, training_warnings
from protofast.report.opening import Fact, facts, headline, lede
from protofast.report.pictures import Pictures
from protofast.report.predictions import PredictionView, prediction_views
from protofast.report.prototypes import PrototypeView, prototype_views


@dataclass(frozen=True)
class Page:
    """Everything that the templates write."""

    run_name: str
    folder: str
    headline: str
    lede: list[str]
    facts: list[Fact]
    notices: list[Notice]
    warnings: list[str]
    pictures: Pictures
    predictions: list[PredictionView]
    prototypes: list[PrototypeView]
    classes: list[str]
    confusion: ConfusionView | None
    charts: list[Chart]
    projected: bool
    receptive_field: Json | None
    input_size: list[int] | None
    summary: Json | None
    settings: list[tuple[str, list[tuple[str, str]]]]
    environment: list[tuple[str, str]]

    @property
    def class_options(self) -> list[tuple[int, str]]:
        """Number and name of every class that has prototypes."""
        return sorted({(view.class_index, view.class_name) for view in self.prototypes})

    @property
    def bare_classes(self) -> list[str]:
        """Classes that have no prototype (any more); empty where prototypes have no class."""
        having = {view.class_index for view in self.prototypes}
        if not having or having == {-1}:
            return []
        return [name for index, name in enumerate(self.classes) if index not in having]

    @property
    def cells_that_see_all(self) -> str:
        """Which cells see the whole image, as the start of a sentence; empty if none does."""
        field = self.receptive_field or {}
        whole, cells = field.get("whole") or 0, field.get("cells")
        if not whole:
            return ""
        return "All cells see" if whole == cells else f"{whole} of the {cells} cells see"

    @property
    def example(self) -> PredictionView | None:
        """The prediction that opens the page: a right one whose first step can be pictured."""
        usable = [view for view in self.predictions if view.right and _shows_source(view)] or [
            view for view in self.predictions if _shows_source(view)
        ]
        return max(usable, key=lambda view: view.classes[0].probability, default=None)


def page_of(run: RunFiles) -> Page:
    """Puts the page together from what there is."""
    classes = _classes(run)
    pictures, prototypes, predictions = _views(run, classes)
    summary = run.explanations
    confusion = None
    if run.confusion is not None:
        names = classes if len(classes) == len(run.confusion.classes) else None
        confusion = confusion_view(run.confusion, names or words.class_names(run.confusion.classes))
    projected = bool(prototypes) and any(view.source is not None for view in prototypes)
    model = (summary or {}).get("model", {})
    return Page(
        run_name=words.name(run.folder.resolve().name),
        folder=folder_argument(run),
        headline=headline(classes, prototypes, projected),
        lede=lede(run, classes, prototypes, projected),
        facts=facts(run, prototypes),
        notices=notices(run, pictures),
        warnings=training_warnings(run),
        pictures=pictures,
        predictions=predictions,
        prototypes=prototypes,
        classes=classes,
        confusion=confusion,
        charts=charts(run.metrics),
        projected=projected,
        receptive_field=model.get("receptive_field"),
        input_size=model.get("input_size"),
        summary=summary,
        settings=tables_of(run.settings or {}),
        environment=list(listed(run.environment or {})),
    )


def _views(
    run: RunFiles, classes: list[str]
) -> tuple[Pictures, list[PrototypeView], list[PredictionView]]:
    """The explanations; none, and a problem, if their summary does not hang together."""
    summary = run.explanations
    if summary is None:
        return Pictures(run, classes), [], []
    try:
        pictures = Pictures(run, classes)
        prototypes = prototype_views(summary, classes, pictures)
        return pictures, prototypes, prediction_views(summary, classes, pictures)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        run.problems.append(f"explanations/summary.json cannot be used ({words.name(what)})")
        run.explanations = None
        return Pictures(run, classes), [], []


def _shows_source(view: PredictionView) -> bool:
    terms = view.classes[0].terms
    return bool(terms) and terms[0].source is not None


def _classes(run: RunFiles) -> list[str]:
    if run.explanations is not None:
        return words.class_names(run.explanations["classes"])
    if run.confusion is not None:
        return words.class_names(run.confusion.classes)
    rows = {
        int(row["class"]): row.get("class_name")
        for row in run.prototypes or []
        if row.get("class") is not None
    }
    return words.class_names(
        [rows.get(index) or index for index in range(max(rows, default=-1) + 1)]
    )


# ----- settings and environment -----


def tables_of(settings: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """(table, [(key, value), ...]) for each table of the settings."""
    tables = []
    plain = [(key, _value(value)) for key, value in settings.items() if not isinstance(value, dict)]
    if plain:
        tables.append(("run", [(words.name(key), value) for key, value in plain]))
    for key, value in settings.items():
        if isinstance(value, dict):
            tables.append((words.name(key), list(listed(value))))
    return tables


def listed(table: Json, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every entry of a nested table, its keys joined by dots, with its value as people read it."""
    for key, value in table.items():
        name = f"{prefix}{words.name(key)}"
        if isinstance(value, dict):
            yield from listed(value, f"{name}.")
        else:
            yield name, _value(value)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_value(one) for one in value) or words.DASH
    if isinstance(value, float):
        return f"{value:g}"
    return words.DASH if value is None else words.name(value)


def class_counts(prototypes: Sequence[PrototypeView]) -> dict[int, int]:
    """How many prototypes each class has."""
    counts: dict[int, int] = {}
    for view in prototypes:
        counts[view.class_index] = counts.get(view.class_index, 0) + 1
    return counts
