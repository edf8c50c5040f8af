"""The papers' tables with our numbers in them, and the table that opens the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protofast.report import words
from protofast.report.audit_files import AuditedModel, AuditFiles, Measure, Result
from protofast.report.audit_subjects import LABELS, Subject, amount, interval, with_unit
from protofast.report.files import Json
from protofast.report.published import (
    ACCURACY,
    HEAD_ON_STOMACH,
    JPEG,
    JPEG_AUGMENTED,
    JPEG_SIMILARITY,
    Published,
    PublishedTable,
)

# Tables of networks of a special training: the settings of it, the key of them that says so, and
# its value without.
_SPECIAL = {
    JPEG.name: (("data", "jpeg"), "compressed", "none"),
    JPEG_SIMILARITY.name: (("data", "jpeg"), "compressed", "none"),
    JPEG_AUGMENTED.name: (("training", "jpeg"), "probability", 0.0),
}
_QUALITY = 20  # of JPEG in all of these


@dataclass(frozen=True)
class Cell:
    """A number in a table: its value and, smaller, what belongs to it."""

    value: str
    interval: str = ""
    n: int = 0


@dataclass(frozen=True)
class TableRow:
    """A model's numbers."""

    name: str
    remark: str
    cells: list[Cell]
    published: bool = False


@dataclass(frozen=True)
class Group:
    """Rows measured under one protocol."""

    protocol: str
    remark: str
    rows: list[TableRow]


@dataclass(frozen=True)
class Table:
    """A table ready to be written."""

    title: str
    source: str
    columns: list[str]
    groups: list[Group]
    notes: tuple[str, ...]


EMPTY = Cell(words.DASH)


def cell_of(measure: Measure | None, *, unit: bool = False) -> Cell:
    """A number as a cell, with its unit where the head of the column does not say it."""
    if measure is None or measure.value is None:
        return EMPTY
    value = amount(measure) if unit else words.number(measure.value, measure.digits)
    return Cell(value, interval(measure), measure.n)


def _published_cell(table: PublishedTable, row: Published, key: str) -> Cell:
    value = row.values.get(key)
    if value is None:
        return EMPTY
    spread = row.spreads.get(key)
    remark = "" if spread is None else f"± {words.number(spread, 1)}"
    return Cell(words.number(value, table.digits_of(value)), remark)


def _published_rows(table: PublishedTable) -> list[TableRow]:
    return [
        TableRow(
            row.model,
            row.note,
            [_published_cell(table, row, key) for key, _ in table.columns],
            published=True,
        )
        for row in table.rows
    ]


def trained_with(model: AuditedModel) -> str:
    """The defences in a model's training, in words; empty without any."""
    return f"with {', '.join(model.defences)}" if model.defences else ""


def _remark(table: PublishedTable, model: AuditedModel, result: Result | None) -> str:
    """How a model was trained, and whether that is not what the table is about."""
    remarks = [trained_with(model)]
    if table.name in _SPECIAL:
        path, key, without = _SPECIAL[table.name]
        said: object = model.facts.get("settings")
        for part in path:
            said = said.get(part) if isinstance(said, dict) else None
        there = said if isinstance(said, dict) else {}
        if there.get(key) is None:
            remarks.append("it is not known whether it was trained so")
        elif there[key] == without:
            remarks.append("not trained so")
            there = {}
        audited = {} if result is None else result.settings
        if path[0] == "training":  # augmentation has no such choice
            there = {**there, "at": audited.get("at")}
        remarks.append(_compressed(there, audited))
    return "; ".join(filter(None, remarks))


def _compressed(trained: Json, audited: Json) -> str:
    """How images were compressed in training and audit, unless both as in the papers."""
    before, now = _jpeg(trained), _jpeg(audited)
    if before is None or now is None or before == now:
        alike = now or before
        return "" if alike in (None, _jpeg({"quality": _QUALITY})) else f"here {alike}"
    return f"trained {before}, audited {now}"


def _jpeg(said: Json) -> str | None:
    """``at quality 5, after resizing``; None where the settings do not say."""
    quality = said.get("quality")
    if not isinstance(quality, int):
        return None
    return f"at quality {quality}{', after resizing' if said.get('at') == 'input' else ''}"


def paper_table(
    table: PublishedTable,
    audit: AuditFiles,
    results: Sequence[Result],
    protocols: dict[str, str],
) -> Table:
    """A paper's table: one group of rows per protocol, ours first, then what was published.

    Args:
        table: What was published.
        audit: Everything that was audited.
        results: The results of the audit that this table belongs to.
        protocols: What each protocol does.
    """
    groups = []
    present = list(dict.fromkeys(result.protocol for result in results))
    if not table.protocol:
        rows = [_our_row(table, audit, model, None) for model in audit.models]
        groups.append(Group("", "", [*rows, *_published_rows(table)]))
        return _finished(table, groups)
    for protocol in [*present, *({table.protocol} - set(present))]:
        rows = [
            _our_row(table, audit, result.model, result)
            for result in results
            if result.protocol == protocol
        ]
        if protocol == table.protocol:
            rows += _published_rows(table)
        groups.append(Group(protocol, protocols.get(protocol, ""), rows))
    return _finished(table, groups)


def _finished(table: PublishedTable, groups: list[Group]) -> Table:
    return Table(
        title=table.title,
        source=f"{table.name}. Published on {table.source}.",
        columns=[heading for _, heading in table.columns],
        groups=groups,
        notes=table.notes,
    )


def _our_row(
    table: PublishedTable, audit: AuditFiles, model: AuditedModel, result: Result | None
) -> TableRow:
    cells = []
    for key, _ in table.columns:
        measure = result.numbers.get(key) if result is not None else None
        if measure is None and table in (ACCURACY, HEAD_ON_STOMACH):
            measure = _accuracy_audited(audit, model, key, result.protocol if result else None)
        cells.append(cell_of(measure))
    return TableRow(model.name, _remark(table, model, result), cells)


def _accuracy_audited(
    audit: AuditFiles, model: AuditedModel, key: str, protocol: str | None
) -> Measure | None:
    """A number of the model's audit of accuracy, which stands beside others in Tables 1 and 3.

    It is of the group's own protocol; the audit knows no `targeted`, whose group has that of
    `paper`. Where no protocol is asked for, the paper's comes first.
    """
    found = {
        result.protocol: result.numbers[key]
        for result in audit.results
        if result.audit == "robust_accuracy" and result.model is model and key in result.numbers
    }
    if protocol is None:
        return found.get("paper", next(iter(found.values()), None))
    return found.get("paper" if protocol == "targeted" else protocol)


# ----- the opening table -----


@dataclass(frozen=True)
class Overview:
    """Models as rows, the main number of every audit as columns."""

    columns: list[tuple[str, str, str]]  # name, what is counted, protocol
    rows: list[TableRow]


def overview(audit: AuditFiles, chosen: Sequence[tuple[Subject, Sequence[Result]]]) -> Overview:
    """The main numbers side by side, after each model’s accuracy.

    Args:
        audit: Everything that was audited.
        chosen: Each audit with the results, of one protocol, that speak for it.
    """
    columns = [("Accuracy", "of the test images", "")]
    rows = [
        TableRow(model.name, trained_with(model), [accuracy_of(model)]) for model in audit.models
    ]
    for subject, results in chosen:
        measures = {result.model.index: result.numbers.get(subject.main) for result in results}
        labels = [measure.label for measure in measures.values() if measure is not None]
        if not labels:
            continue
        label = LABELS.get(subject.main, labels[0])
        columns.append((subject.short, label, results[0].protocol))
        for model, row in zip(audit.models, rows, strict=True):
            row.cells.append(cell_of(measures.get(model.index), unit=True))
    return Overview(columns, rows)


def accuracy_of(model: AuditedModel) -> Cell:
    """A model’s accuracy, as audit.json has it."""
    return EMPTY if model.accuracy is None else Cell(with_unit(model.accuracy, "%"))
