"""Curves of a training run as inline SVG: small, directly labelled, in the page's colours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from protofast.report import words
from protofast.report.files import Json

WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 62, 24, 26

# What is drawn, in this order, where a run has it: key, title, whether it is a fraction.
_PANELS = (
    ("accuracy", "Accuracy", True),
    ("loss", "Loss, all terms together", False),
    ("cross_entropy", "Cross entropy", False),
    ("cluster", "Distance to the nearest own prototype", False),
    ("separation", "Distance to the nearest other prototype", False),
    ("l1", "L1 norm of weights between classes", False),
    ("alignment", "Alignment", False),
)
_STAGES = {"warm": "warm", "joint": "joint", "last_layer": "last layer", "project": "project"}


@dataclass(frozen=True)
class Series:
    """One curve: values by position on the horizontal axis, None where there is none."""

    label: str
    style: str  # CSS class
    values: Sequence[float | None]


@dataclass(frozen=True)
class Timeline:
    """The epochs of a run in order, and what happened between them.

    Attributes:
        epochs: Metric rows of the epochs.
        bands: (stage, first position, one past the last) of the stages.
        projections: Positions after which the prototypes were projected.
    """

    epochs: Sequence[Json]
    bands: Sequence[tuple[str, int, int]]
    projections: Sequence[int]


@dataclass(frozen=True)
class Chart:
    """A drawn chart and the same in numbers."""

    title: str
    svg: Markup
    description: str
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def timeline(metrics: Sequence[Json]) -> Timeline:
    """Sorts the lines of ``metrics.jsonl`` into epochs, stages and projections."""
    epochs = [row for row in metrics if row.get("kind") == "epoch"]
    bands: list[tuple[str, int, int]] = []
    for place, row in enumerate(epochs):
        stage = str(row.get("stage", ""))
        if bands and bands[-1][0] == stage:
            bands[-1] = (stage, bands[-1][1], place + 1)
        else:
            bands.append((stage, place, place + 1))
    projections = []
    seen = 0
    for row in metrics:
        seen += row.get("kind") == "epoch"
        if row.get("kind") == "projection":
            projections.append(seen)
    return Timeline(epochs, bands, projections)


def charts(metrics: Sequence[Json]) -> list[Chart]:
    """The charts of a run; none before the first epoch."""
    line = timeline(metrics)
    if not line.epochs:
        return []
    drawn = []
    for key, title, fraction in _PANELS:
        series = [Series("train", "s-train", [_value(row, key) for row in line.epochs])]
        if key == "accuracy":
            series.append(Series("test", "s-test", _test_values(metrics, line, key)))
        series = [one for one in series if any(value is not None for value in one.values)]
        if series:
            drawn.append(_chart(title, series, line, fraction=fraction))
    return drawn


def _value(row: Json, key: str) -> float | None:
    value = row.get(key)
    usable = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if usable else None  # type: ignore[arg-type]


def _test_values(metrics: Sequence[Json], line: Timeline, key: str) -> list[float | None]:
    """The latest test at each epoch; a test belongs to the epoch before it."""
    values: list[float | None] = [None] * len(line.epochs)
    seen = 0
    for row in metrics:
        seen += row.get("kind") == "epoch"
        if row.get("kind") == "test" and seen:
            values[seen - 1] = _value(row, key)
    return values


def _chart(title: str, series: list[Series], line: Timeline, *, fraction: bool) -> Chart:
    values = [value for one in series for value in one.values if value is not None]
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if fraction else nice_ticks(min(0.0, *values), max(values))
    write = (lambda value: words.percent(value, 0)) if fraction else words.short
    plot = _Plot(len(line.epochs), ticks[0], ticks[-1])
    parts = [_bands(plot, line), _grid(plot, ticks, write), _projections(plot, line)]
    parts += [plot.curve(one) for one in series]
    parts.append(_end_labels(plot, series, write))
    description = "; ".join(_sentence(one, write) for one in series)
    exact = words.percent if fraction else words.short
    return Chart(
        title=title,
        svg=_svg(title, description, Markup("").join(parts)),
        description=description,
        header=["Epoch", "Stage", *(one.label for one in series)],
        rows=[
            [str(place + 1), _STAGES.get(str(row.get("stage")), words.name(row.get("stage", "")))]
            + [exact(one.values[place]) for one in series]
            for place, row in enumerate(line.epochs)
        ],
    )


def _svg(title: str, description: str, body: Markup) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}: {}">{}</svg>'
    ).format(WIDTH, HEIGHT, title, description, body)


def _sentence(series: Series, write: object) -> str:
    values = [value for value in series.values if value is not None]
    assert callable(write)
    return f"{series.label} from {write(values[0])} to {write(values[-1])} in {len(values)} epochs"


@dataclass(frozen=True)
class _Plot:
    """Where numbers lie on the canvas."""

    epochs: int
    low: float
    high: float

    def x(self, place: float) -> float:
        """Centre of an epoch; the edge between two for halves."""
        return _LEFT + (place + 0.5) / self.epochs * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def curve(self, series: Series) -> Markup:
        points = [
            (self.x(place), self.y(value))
            for place, value in enumerate(series.values)
            if value is not None
        ]
        if len(points) == 1:
            return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
                series.style, *points[0]
            )
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        return Markup('<path class="line {}" d="{}"/>').format(series.style, path)


def _bands(plot: _Plot, line: Timeline) -> Markup:
    parts = []
    for number, (stage, first, end) in enumerate(line.bands):
        left, right = plot.x(first - 0.5), plot.x(end - 0.5)
        parts.append(
            Markup('<rect class="band {}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
                "even" if number % 2 == 0 else "odd",
                left,
                _TOP,
                right - left,
                HEIGHT - _TOP - _BOTTOM,
            )
        )
        label = _STAGES.get(stage, words.name(stage))
        if right - left > 6.2 * len(label):
            parts.append(
                Markup('<text class="stage" x="{:.1f}" y="{}">{}</text>').format(
                    (left + right) / 2, _TOP - 8, label
                )
            )
    return Markup("").join(parts)


def _grid(plot: _Plot, ticks: Sequence[float], write: object) -> Markup:
    assert callable(write)
    parts = []
    for tick in ticks:
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text class="tick y" x="{}" y="{:.1f}">{}</text>'
            ).format(
                _LEFT,
                WIDTH - _RIGHT,
                plot.y(tick),
                plot.y(tick),
                _LEFT - 6,
                plot.y(tick) + 3.5,
                write(tick),
            )
        )
    shown = sorted({1, plot.epochs} | {e for e in nice_epochs(plot.epochs) if 1 < e < plot.epochs})
    for epoch in shown:
        word = "epoch " if epoch == 1 and plot.epochs > 3 else ""
        anchor = "first" if epoch == 1 and plot.epochs > 3 else "x"
        parts.append(
            Markup('<text class="tick {}" x="{:.1f}" y="{}">{}{}</text>').format(
                anchor, plot.x(epoch - 1), HEIGHT - 9, word, epoch
            )
        )
    return Markup("").join(parts)


def _projections(plot: _Plot, line: Timeline) -> Markup:
    parts = []
    for place in line.projections:
        x = plot.x(place - 0.5)
        parts.append(
            Markup('<line class="projected" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(
                x, x, _TOP - 4, HEIGHT - _BOTTOM
            )
        )
    return Markup("").join(parts)


@dataclass
class _End:
    """The label at the end of a curve."""

    y: float
    style: str
    text: str


def _end_labels(plot: _Plot, series: Sequence[Series], write: object) -> Markup:
    """The last value of each curve, written at its end, apart from each other."""
    assert callable(write)
    ends: list[_End] = []
    for one in series:
        value = next(value for value in reversed(one.values) if value is not None)
        text = write(value) if len(series) == 1 else f"{one.label} {write(value)}"
        ends.append(_End(plot.y(value) + 3.5, one.style, text))
    ends.sort(key=lambda end: end.y)
    for upper, lower in itertools.pairwise(ends):
        lower.y = max(lower.y, upper.y + 12)
    return Markup("").join(
        Markup('<text class="end {}" x="{}" y="{:.1f}">{}</text>').format(
            end.style, WIDTH - _RIGHT + 5, end.y, end.text
        )
        for end in ends
    )


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from below ``low`` to above ``high``."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    step = 10.0 ** math.floor(math.log10(raw))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(place * step, 12) for place in range(first, last + 1)]


def nice_epochs(epochs: int) -> list[int]:
    """Epochs to write under the axis, so that they neither touch each other nor the ends."""
    step = next(
        step for step in (5, 10, 20, 25, 50, 100, 200, 250, 500, 10**9) if epochs / step <= 5
    )
    return [
        epoch
        for epoch in range(step, epochs, step)
        if epoch > 0.25 * epochs and epochs - epoch > 0.12 * epochs
    ]
