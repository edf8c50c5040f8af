"""The page that says what was run and what came out, beside what was published; Markdown.

It is made from a grid's plan and its ``audit.json`` files alone, so a grid that is half done gives
half a page, which says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from protofast.files import write_atomically
from protofast.report.published import PublishedTable
from protofast.reproduce.claims import EXPERIMENTS, Experiment
from protofast.reproduce.grid import Grid
from protofast.reproduce.numbers import Outcome, Results, gather, outcomes, short, spread
from protofast.reproduce.plan import WEIGHTS, Plan, Variant, is_place, plans

Found = Sequence[tuple[Grid, Results]]

_OPENING = """\
# Fidelity

What the two papers report, what came out when their experiments were run with protofast, and where
the papers and their released code part. `protofast reproduce` writes this page from the results of
its audits; do not edit it by hand.

The papers are Hoffmann et al. 2021 (*This Looks Like That... Does it?*) and Sacha et al. 2024
(*Interpretability Benchmark for Evaluating Spatial Misalignment of Prototypical Parts
Explanations*). Their numbers are of 200 classes of photographs (CUB-200-2011) and large networks
that start from ImageNet weights. What was run here is smaller (see below), so what can be compared
is the direction, not the value.

Every audit has two protocols: `paper` is what the text says, with an attack that takes its steps;
`released` is what the authors' code computes. A number means nothing without its protocol.
"""


def write_page(grids: Sequence[Grid], file: Path | str) -> None:
    """Write the page of some grids, whatever of them is done; in one piece."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, page_text(grids))


def page_text(grids: Sequence[Grid]) -> str:
    """The page of some grids."""
    found = [(grid, gather(grid)) for grid in grids]
    parts = [_OPENING, *_what_was_run(found), *_in_short(found)]
    for experiment in EXPERIMENTS:
        parts += _experiment(experiment, found)
    parts += [*_settings(found), *_cells(grids)]
    return "\n".join(parts).rstrip() + "\n"


def _what_was_run(found: Found) -> Iterator[str]:
    yield "## What was run\n"
    rows = []
    for grid, results in found:
        cells = list(grid.cells())
        done = sum(grid.done(cell) for cell in cells)
        model = next(iter(results.models.values()), None)
        network = (
            f"{model['prototypes']} prototypes of {model['classes']} classes" if model else "-"
        )
        images = str(results.data["images"]) if results.data else "-"
        named = grid.plan.name if grid.plan.name in plans() else "PLAN.toml"
        command = f"`protofast reproduce {named}`"
        seeds = ", ".join(map(str, grid.plan.seeds))
        rows.append([grid.plan.title, command, network, images, seeds, f"{done} of {len(cells)}"])
    heads = ["data and scale", "command", "network", "test images", "seeds", "cells done"]
    yield _table(heads, rows)
    rows = [
        [
            _of(grid),
            name,
            f"`{variant.start}`" if variant.start else "-",
            ", ".join(f"`{Path(part).name}`" for part in variant.parts) or "-",
            ", ".join(f"`{said}`" for said in _set(grid.plan, variant)) or "-",
        ]
        for grid, _ in found
        for name, variant in grid.plan.models.items()
    ]
    heads = ["data", "model", "goes on from", "recipe parts (`--with`)", "settings (`--set`)"]
    yield _table(heads, rows)
    yield from (f"*{_of(grid)}:* {note}\n" for grid, _ in found for note in grid.plan.notes)


def _set(plan: Plan, variant: Variant) -> list[str]:
    """A model's settings but for places; of several of one key the last, which counts."""
    by_key = {said.partition("=")[0].strip(): said for said in (*plan.set, *variant.set)}
    if WEIGHTS in by_key:  # the file's name, without the folder
        by_key[WEIGHTS] = f"{WEIGHTS}={Path(by_key[WEIGHTS].partition('=')[2]).name}"
    return [said for said in by_key.values() if not is_place(said)]


def _in_short(found: Found) -> Iterator[str]:
    yield "## In short\n"
    rows = []
    for experiment in EXPERIMENTS:
        for direction in experiment.directions:
            for grid, results in found:
                if not {model for model, _ in direction.sides} <= set(grid.plan.models):
                    continue
                came_out = outcomes(direction, results)
                rows += [[_of(grid), direction.says, *_said(outcome)] for outcome in came_out]
                if not came_out:
                    rows.append([_of(grid), direction.says, "-", "not measured yet", "-"])
    yield _table(["data", "direction", "protocol", "came out", "means over seeds"], rows)
    yield from _remarks(found)


def _said(outcome: Outcome) -> list[str]:
    """Protocol, verdict and numbers."""
    seeds = "1 seed" if outcome.seeds == 1 else f"{outcome.seeds} seeds"
    if outcome.idle == outcome.seeds:
        verdict = f"nothing to lower ({seeds})"
    elif outcome.held == outcome.seeds:
        verdict = f"yes ({seeds})"
    elif outcome.held == 0:
        verdict = f"**no** ({seeds})"
    else:
        verdict = f"**in {outcome.held} of {seeds}**"
    if 0 < outcome.idle < outcome.seeds:
        verdict += f", nothing to lower in {outcome.idle}"
    unit = f" {outcome.direction.unit}" if outcome.direction.unit else ""
    return [
        f"`{outcome.protocol}`" if outcome.protocol else "-",
        verdict,
        "; ".join(
            f"{model}: {short(number)}{unit}" + ("" if _is_alone(outcome) else f" ({key})")
            for (model, key), number in zip(outcome.sides, outcome.numbers, strict=True)
        ),
    ]


def _is_alone(outcome: Outcome) -> bool:
    """Whether all of a direction's numbers are of one kind, so that its words say which."""
    return len({key for _, key in outcome.sides}) == 1


def _remarks(found: Found) -> Iterator[str]:
    """What the plans say about directions that did not come out."""
    for grid, results in found:
        for experiment in EXPERIMENTS:
            for direction in experiment.directions:
                remark = grid.plan.remarks.get(direction.key)
                found_out = outcomes(direction, results)
                if remark and any(each.held + each.idle < each.seeds for each in found_out):
                    yield f"*{_of(grid)}, {direction.says}:* {remark}\n"


def _experiment(experiment: Experiment, found: Found) -> Iterator[str]:
    yield f"## {experiment.title}\n"
    commands = "\n".join(experiment.commands)
    yield f"```\n{commands}\n```\n"
    if experiment.published is not None:
        yield from _published(experiment.published)
    if experiment.columns:
        yield "Here (mean over seeds, and the range):\n"
        yield _table(
            ["data", "model", "protocol", *(head for _, head in experiment.columns), "images"],
            [row for grid, results in found for row in _rows(experiment, grid, results)],
        )
    notes = experiment.published.notes if experiment.published is not None else ()
    yield from (f"{_ascii(text)}\n" for text in (*notes, *experiment.differences))


def _rows(experiment: Experiment, grid: Grid, results: Results) -> Iterator[list[str]]:
    """A row for each model and protocol; one that says so for a model that was not measured."""
    for model in experiment.models:
        if model not in grid.plan.models:
            continue
        measured = False
        for protocol in results.protocols(experiment.audit):
            keys = [(model, experiment.audit, protocol, key) for key, _ in experiment.columns]
            if not any(key in results.values for key in keys):
                continue
            measured = True
            cells = [spread(results.values.get(key, {})) for key in keys]
            counts = next(results.counts[key] for key in keys if key in results.counts)
            images = " + ".join(str(count) for count in counts.values())
            yield [_of(grid), model, f"`{protocol}`", *cells, images]
        if not measured:
            yield [_of(grid), model, "-", *("missing" for _ in experiment.columns), "-"]


def _published(table: PublishedTable) -> Iterator[str]:
    under = f", to be read beside `{table.protocol}`" if table.protocol else ""
    yield f"Published ({_ascii(table.source)}{under}):\n"
    rows = []
    for row in table.rows:
        cells = []
        for key, _ in table.columns:
            value, plus = row.values.get(key), row.spreads.get(key)
            said = "-" if value is None else f"{value:.{table.digits_of(value)}f}"
            cells.append(said if plus is None else f"{said} ± {plus:.1f}")
        rows.append([_ascii(row.model), *cells, _ascii(row.note)])
    with_notes = any(row[-1] for row in rows)
    heads = ["", *(_ascii(head) for _, head in table.columns), *(["remark"] if with_notes else [])]
    yield _table(heads, rows if with_notes else [row[:-1] for row in rows])


def _settings(found: Found) -> Iterator[str]:
    yield "## Settings of the audits\n"
    rows = []
    for grid, results in found:
        for (audit, protocol), by_model in results.settings.items():
            models: dict[str, list[str]] = {}  # by what they were audited with
            for model, settings in by_model.items():
                said = ", ".join(f"{key} {_values(each)}" for key, each in settings.items())
                models.setdefault(said, []).append(model)
            rows += [
                [_of(grid), audit, f"`{protocol}`", ", ".join(names), said]
                for said, names in models.items()
            ]
    yield _table(["data", "audit", "protocol", "models", "settings"], rows)
    rows = [
        [_of(grid), model, audit, f"`{protocol}`", f"{reason}: {count}"]
        for grid, results in found
        for (model, audit, protocol), reasons in results.skipped.items()
        for reason, count in reasons.items()
    ]
    if rows:
        yield "Images that gave no number, all seeds together:\n"
        yield _table(["data", "model", "audit", "protocol", "why"], rows)


def _values(values: Sequence[object]) -> str:
    """A setting's value; several where they differ from seed to seed."""
    return " / ".join(
        f"{value:.4g}" if isinstance(value, float) else "all" if value is None else str(value)
        for value in values
    )


def _cells(grids: Sequence[Grid]) -> Iterator[str]:
    yield "## Cells\n"
    for grid in grids:
        states: dict[str, list[str]] = {}
        for cell in grid.cells():
            state = "done" if grid.done(cell) else "missing"
            states.setdefault(f"{cell.work} {cell.name}", []).append(state)
        heads = [_of(grid), *(f"seed {seed}" for seed in grid.plan.seeds)]
        yield _table(heads, [[name, *row] for name, row in states.items()])


def _of(grid: Grid) -> str:
    return grid.plan.name


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; nothing in a cell can end it."""
    if not rows:
        return "Nothing yet.\n"
    lines = [heads, ["---"] * len(heads), *rows]
    return (
        "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines) + "\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _ascii(text: str) -> str:
    """Plain quotation marks, as in the other pages."""
    for curly, plain in (("\u201c", '"'), ("\u201d", '"'), ("\u2019", "'")):
        text = text.replace(curly, plain)
    return text
