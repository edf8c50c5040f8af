"""The numbers of a grid's audits, gathered over its seeds, and what becomes of the directions."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from protofast.reproduce.claims import ALL_IMAGES, Direction, Side
from protofast.reproduce.grid import Grid

Key = tuple[str, str, str, str]  # model, audit, protocol, key of the number


@dataclass
class Results:
    """What came out of a grid.

    Attributes:
        values: For each number, its value by seed; a model's accuracy on all test images, in per
            cent, stands as its ``accuracy`` under the audit `ALL_IMAGES` and no protocol.
        counts: For each number, the images that it was measured on, by seed.
        settings: For each audit and protocol and each model, the settings it was run with: for each
            key its values, more than one where they differ from seed to seed.
        skipped: For each model, audit and protocol, the rows without a result, by reason.
        models: Facts of each model by name, from the first seed that has it.
        data: Facts of the images; empty before anything is done.
        audited: For each audit, the models that the plan has it look at.
    """

    values: dict[Key, dict[int, float]] = field(default_factory=dict)
    counts: dict[Key, dict[int, int]] = field(default_factory=dict)
    settings: dict[tuple[str, str], dict[str, dict[str, list[Any]]]] = field(default_factory=dict)
    skipped: dict[tuple[str, str, str], dict[str, int]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    audited: dict[str, set[str]] = field(default_factory=dict)

    def protocols(self, audit: str) -> list[str]:
        """Under which protocols an audit was run, in their order."""
        if audit == ALL_IMAGES:
            return [""]
        return [protocol for name, protocol in self.settings if name == audit]

    def at(self, audit: str, protocol: str, side: Side) -> dict[int, float]:
        """A number of a model by seed; empty where it was not measured."""
        model, key = side
        return self.values.get((model, audit, protocol, key), {})


def gather(grid: Grid) -> Results:
    """The numbers of all audits that are done."""
    results = Results()
    plans = {audit.name: audit for audit in grid.plan.audits}
    for plan in grid.plan.audits:
        for audit in (*plan.audits, ALL_IMAGES):
            results.audited.setdefault(audit, set()).update(plan.models)
    for cell, said in grid.results():
        names = plans[cell.name].models
        results.data = results.data or said["data"]
        for name, described in zip(names, said["models"], strict=True):
            results.models.setdefault(name, described)
            key = (name, ALL_IMAGES, "", "accuracy")
            results.values.setdefault(key, {})[cell.seed] = 100 * described["accuracy"]
        for entry in said["audits"]:
            model, which = names[entry["model"]], (entry["audit"], entry["protocol"])
            known = results.settings.setdefault(which, {}).setdefault(model, {})
            for key, value in entry["settings"].items():
                values = known.setdefault(key, [])
                values += [value] if value not in values else []
            reasons = results.skipped.setdefault((model, *which), {})
            for reason, count in entry["skipped"].items():
                reasons[reason] = reasons.get(reason, 0) + count
            for number in entry["numbers"]:
                if number["value"] is not None:
                    key = (model, *which, number["key"])
                    results.values.setdefault(key, {})[cell.seed] = number["value"]
                    results.counts.setdefault(key, {})[cell.seed] = number["n"]
    return results


@dataclass(frozen=True)
class Outcome:
    """Whether a direction came out, under one protocol.

    Attributes:
        direction: Which.
        protocol: Under which protocol; empty for numbers that have none.
        sides: The numbers that decided it.
        held: Seeds in which it holds.
        seeds: Seeds in which all its numbers were measured.
        idle: Those of them in which there was nothing to lower.
        numbers: Their means over these seeds.
    """

    direction: Direction
    protocol: str
    sides: tuple[Side, ...]
    held: int
    seeds: int
    idle: int
    numbers: tuple[float, ...]


def outcomes(direction: Direction, results: Results) -> list[Outcome]:
    """One for each protocol under which its audit was run; none where numbers are missing."""
    found = []
    sides = direction.sides_among(results.audited.get(direction.audit, set()))
    for protocol in results.protocols(direction.audit):
        values = [results.at(direction.audit, protocol, side) for side in sides]
        seeds = sorted(set.intersection(*(set(each) for each in values)))
        if seeds:
            verdicts = [direction.holds(*(each[seed] for each in values)) for seed in seeds]
            held, idle = verdicts.count(True), verdicts.count(None)
            means = tuple(fmean(each[seed] for seed in seeds) for each in values)
            found.append(Outcome(direction, protocol, sides, held, len(seeds), idle, means))
    return found


def spread(values: dict[int, float]) -> str:
    """`97.5 (95.0 to 100)`: mean and range over seeds; one seed's value alone; a dash for none."""
    if not values:
        return "-"
    low, high = min(values.values()), max(values.values())
    mean = short(fmean(values.values()))
    return mean if low == high else f"{mean} ({short(low)} to {short(high)})"


def short(value: float) -> str:
    """Three digits, or one after the point: `0.0312`, `7.25`, `97.5`, `-12.0`."""
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
