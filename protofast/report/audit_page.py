"""What the page of an audit says, in the order in which it says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from protofast.report import words
from protofast.report.audit_charts import axis_for, axis_of, histogram, scale, strip
from protofast.report.audit_comparison import compared
from protofast.report.audit_files import AuditFiles, Difference, Measure, Result
from protofast.report.audit_pictures import Album, picture_views
from protofast.report.audit_subjects import LABELS, SUBJECTS, Subject, amount, interval, subject_of
from protofast.report.audit_tables import Overview, Table, overview, paper_table
from protofast.report.page import listed

# Which protocol speaks for an audit, if there are several.
_FIRST = ("paper", "targeted", "released")
_FEW = 3  # up to so many models, each has its own sentence in a verdict


@dataclass(frozen=True)
class Line:
    """A number of one model, drawn."""

    model: str
    protocol: str
    value: str
    interval: str
    drawing: Markup


@dataclass(frozen=True)
class Drawing:
    """The same number of all models on one axis, or its distributions."""

    title: str
    remark: str
    lines: list[Line]
    scale: Markup


@dataclass(frozen=True)
class Verdict:
    """What an audit says of the models, in a few sentences."""

    anchor: str
    subject: Subject
    protocol: str
    sentences: list[tuple[str, str]]  # model, what holds of it
    comparison: str
    drawing: Drawing | None


@dataclass(frozen=True)
class Section:
    """Everything about one audit."""

    anchor: str
    subject: Subject
    protocols: list[tuple[str, str]]
    drawings: list[Drawing]
    distributions: list[Drawing]
    tables: list[Table]
    skipped: list[tuple[str, str, str, int, int]]  # model, protocol, reason, rows, of
    remarks: list[tuple[str, str, str, str]]  # model, protocol, share, what holds for so many
    numbers: list[tuple[Result, Measure]]
    differences: list[Difference]
    computed: str
    albums: list[Album]

    @property
    def albums_by_protocol(self) -> list[tuple[str, list[Album]]]:
        """The pictures under each protocol; the first is the one that speaks for the audit."""
        names = dict.fromkeys(album.protocol for album in self.albums)
        return [(name, [one for one in self.albums if one.protocol == name]) for name in names]

    @property
    def versions(self) -> list[str]:
        """What pictures of this section can be switched between."""
        names = [
            version.name
            for album in self.albums
            for picture in album.pictures
            if picture.is_switched
            for version in picture.versions
        ]
        return list(dict.fromkeys(names))


@dataclass(frozen=True)
class AuditPage:
    """Everything that the templates write."""

    run_name: str
    headline: str
    lede: list[str]
    problems: list[str]
    overview: Overview
    verdicts: list[Verdict]
    sections: list[Section]
    models: list[tuple[str, list[tuple[str, str]]]]
    settings: list[tuple[str, list[tuple[str, str]]]]
    environment: list[tuple[str, str]]
    times: list[tuple[str, str]]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Anchor and title of every section."""
        first = [("verdicts", "Verdicts")] if self.verdicts else []
        sections = [(section.anchor, section.subject.short) for section in self.sections]
        return [*first, *sections, ("limits", "Limits"), ("settings", "Settings")]


def page_of(audit: AuditFiles) -> AuditPage:
    """Puts the page together from what there is; adds to ``audit.problems`` what is missing."""
    by_audit: dict[str, list[Result]] = {}
    for result in audit.results:
        by_audit.setdefault(result.audit, []).append(result)
    order = [subject.name for subject in SUBJECTS]
    names = sorted(by_audit, key=lambda name: order.index(name) if name in order else len(order))
    subjects = [(subject_of(by_audit[name][0]), by_audit[name]) for name in names]
    shots = picture_views(audit)
    sections = [
        _section(audit, place, subject, results, shots)
        for place, (subject, results) in enumerate(subjects)
    ]
    chosen = [(subject, _speaking(results)) for subject, results in subjects]
    return AuditPage(
        run_name=words.shortened(words.name(audit.folder.resolve().name)),
        headline=_headline(audit),
        lede=_lede(audit),
        problems=audit.problems,
        overview=overview(audit, chosen),
        verdicts=[
            _verdict(section.anchor, subject, results, audit.differences)
            for section, (subject, results) in zip(sections, chosen, strict=True)
        ],
        sections=sections,
        models=[(model.name, list(listed(model.facts))) for model in audit.models],
        settings=[
            (f"{result.model.name}, {result.title}, protocol {result.protocol}", rows)
            for result in audit.results
            for rows in [list(listed(result.settings))]
            if rows
        ],
        environment=list(listed(audit.environment)),
        times=list(listed({k: v for k, v in audit.times.items() if k != "environment"})),
    )


def _headline(audit: AuditFiles) -> str:
    if len(audit.models) == 1:
        return "How far can this network’s explanations be trusted?"
    number = words.spelled(len(audit.models)) if audit.models else "no"
    return f"How far can the explanations of {number} networks be trusted?"


def _lede(audit: AuditFiles) -> list[str]:
    data = audit.data.get("description")
    images = audit.data.get("images")
    shown = words.count(images, "test image") if isinstance(images, int) else "test images"
    source = f" ({words.shortened(words.name(data), 200)})" if isinstance(data, str) else ""
    sentences = [
        "A prototype network explains itself by pointing: this part of the image looks like that "
        "part of a training image. An audit tries to prove the pointing wrong."
    ]
    names = [model.name for model in audit.models]
    who = ", ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
    if len(names) == 2:
        who = " and ".join(names)
    listed_ = f": {who}" if 0 < len(names) < 5 else ""
    sentences.append(f"Audited on {shown}{source}{listed_}.")
    return sentences


def _speaking(results: Sequence[Result]) -> list[Result]:
    """The results of the protocol that speaks for an audit: the paper's, if any model has it."""
    present = {result.protocol for result in results}
    protocol = next((name for name in _FIRST if name in present), results[0].protocol)
    return [result for result in results if result.protocol == protocol]


# ----- verdicts -----


def _verdict(
    anchor: str, subject: Subject, results: Sequence[Result], differences: Sequence[Difference]
) -> Verdict:
    said = [(result.model.name, subject.verdict(result)) for result in results]
    sentences = [
        (name, text or "there is nothing to say: no number came out") for name, text in said
    ]
    drawings = _drawings(results, [subject.main])
    return Verdict(
        anchor=anchor,
        subject=subject,
        protocol=results[0].protocol,
        sentences=sentences,
        comparison=compared(subject.main, results, differences),
        drawing=drawings[0] if drawings else None,
    )


# ----- sections -----


def _section(
    audit: AuditFiles,
    place: int,
    subject: Subject,
    results: Sequence[Result],
    shots: dict[tuple[int, str, str], Album],
) -> Section:
    ordered = sorted(results, key=lambda result: (_rank(result.protocol), result.model.index))
    present = list(dict.fromkeys(result.protocol for result in ordered))
    return Section(
        anchor=f"audit-{place}",
        subject=subject,
        protocols=[
            (name, subject.protocols[name]) for name in present if name in subject.protocols
        ],
        drawings=_drawings(ordered, subject.charted),
        distributions=_distributions(audit, ordered, subject.charted),
        tables=[
            paper_table(table, audit, ordered, dict(subject.protocols)) for table in subject.tables
        ],
        skipped=[
            (result.model.name, result.protocol, reason, count, result.rows)
            for result in ordered
            for reason, count in result.skipped.items()
        ],
        remarks=[
            (result.model.name, result.protocol, amount(one), one.label)
            for result in ordered
            for key, one in result.numbers.items()
            if key not in subject.charted
        ],
        numbers=[(result, one) for result in ordered for one in result.numbers.values()],
        differences=[each for each in audit.differences if each.audit == results[0].audit],
        computed=_computed(ordered),
        albums=[
            shots[key]
            for result in ordered
            if (key := (result.model.index, result.audit, result.protocol)) in shots
        ],
    )


def _computed(results: Sequence[Result]) -> str:
    """On what the numbers of a section were computed; empty where audit.json does not say."""
    said = [(result, result.computed) for result in results if result.computed]
    if len({way for _, ways in said for way in ways}) == 1 and len(said) == len(results):
        return next(iter(said[0][1]))
    alike: dict[str, list[str]] = {}  # whose numbers, by how they were computed
    for result, ways in said:
        counts = [f"{words.count(count, 'image')} on {way}" for way, count in ways.items()]
        what = " and ".join(counts) if len(counts) > 1 else next(iter(ways))
        alike.setdefault(what, []).append(f"{result.model.name} {result.protocol}")
    return "; ".join(f"{', '.join(whose)}: {what}" for what, whose in alike.items())


def _rank(protocol: str) -> int:
    return _FIRST.index(protocol) if protocol in _FIRST else len(_FIRST)


def _drawings(results: Sequence[Result], keys: Sequence[str]) -> list[Drawing]:
    drawings = []
    for key in keys:
        found = [
            (result, measure)
            for result in results
            if (measure := result.numbers.get(key)) is not None and measure.value is not None
        ]
        if not found:
            continue
        first = found[0][1]
        axis = axis_of([measure for _, measure in found])
        better = f"{first.better} is better" if first.better else ""
        drawings.append(
            Drawing(
                title=LABELS.get(key, first.label),
                remark=better,
                lines=[
                    Line(
                        result.model.name,
                        result.protocol,
                        amount(measure),
                        interval(measure),
                        strip(measure, axis, protocol=result.protocol),
                    )
                    for result, measure in found
                ],
                scale=scale(axis),
            )
        )
    return drawings


def _distributions(
    audit: AuditFiles, results: Sequence[Result], keys: Sequence[str]
) -> list[Drawing]:
    """Of every number that has a column in the audit's table, one value per image."""
    tables = [(result, audit.columns(result)) for result in results]
    drawings = []
    for key in keys:
        found = [
            (result, columns[key], result.numbers[key])
            for result, columns in tables
            if key in columns and key in result.numbers and len(set(columns[key])) > 1
        ]
        if not found:
            continue
        first = found[0][2]
        axis = axis_for([value for _, values, _ in found for value in values], first.unit)
        drawings.append(
            Drawing(
                title=LABELS.get(key, first.label),
                remark="each image; the line marks the median",
                lines=[
                    Line(
                        result.model.name,
                        result.protocol,
                        f"n = {len(values):,}",
                        "",
                        histogram(f"{result.model.name}, {first.label}", values, axis),
                    )
                    for result, values, _ in found
                ],
                scale=scale(axis),
            )
        )
    return drawings
