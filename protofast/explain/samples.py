"""Which test images are explained: a fair sample of right predictions, the worst wrong ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from protofast.explain.album import Album
from protofast.explain.files import Json
from protofast.explain.local import (
    ClassExplanation,
    Evidence,
    Explanation,
    Remainder,
    Term,
    explain_images,
)
from protofast.explain.passes import Decisions, batches_of
from protofast.explain.pictures import heatmap_png
from protofast.models.protocol import PrototypeModel

_IMAGES_AT_ONCE = 16  # each has a dozen heat maps of its own size in memory

RIGHT_RULE = "drawn at random, one class after the other"
WRONG_RULE = "the most confident ones, at most one of each true class before any class comes twice"


def choose_right(decisions: Decisions, count: int, *, seed: int) -> list[int]:
    """Positions of right predictions, drawn at random; classes take turns."""
    right = (decisions.predicted == decisions.labels).nonzero()[:, 0].numpy()
    order = np.random.default_rng(seed).permutation(right)
    return _in_turns(order.tolist(), decisions, count)


def choose_wrong(decisions: Decisions, count: int) -> list[int]:
    """Positions of wrong predictions, first where the true class is furthest behind; in turns."""
    logits = decisions.logits.double()
    wrong = (decisions.predicted != decisions.labels).nonzero()[:, 0]
    behind = logits[wrong].amax(dim=1) - logits[wrong, decisions.labels[wrong]]
    order = wrong[behind.argsort(descending=True, stable=True)]
    return _in_turns(order.tolist(), decisions, count)


def _in_turns(order: list[int], decisions: Decisions, count: int) -> list[int]:
    """The first ``count`` of ``order``, no class coming twice before all others came once."""
    turns: dict[int, int] = {}
    ranked = []
    for place, position in enumerate(order):
        label = int(decisions.labels[position])
        ranked.append((turns.get(label, 0), place, position))
        turns[label] = turns.get(label, 0) + 1
    return [position for _, _, position in sorted(ranked)[:count]]


def describe_predictions(
    model: PrototypeModel,
    album: Album,
    positions: list[int],
    *,
    top: int,
    batch_size: int,
    add: Callable[[str, bytes], None],
) -> list[Json]:
    """The list ``predictions`` of the summary; pictures go to ``add``."""
    test = album.sets["test"]
    entries: list[Json] = []
    for batch in batches_of(test.subset(positions), min(batch_size, _IMAGES_AT_ONCE)):
        explained = explain_images(
            model, batch.images, top=top, classes=2, labels=batch.labels.tolist()
        )
        for explanation in explained:
            entries.append(
                _describe(
                    explanation, album.key("test", positions[len(entries)]), len(entries), add
                )
            )
    return entries


def _describe(
    explanation: Explanation, image: str, number: int, add: Callable[[str, bytes], None]
) -> Json:
    stored: set[int] = set()
    classes = []
    for part in explanation.classes:
        for term in part.shown:
            if term.evidence.prototype not in stored:
                stored.add(term.evidence.prototype)
                add(_heatmap_name(number, term), heatmap_png(term.evidence.heatmap))
        classes.append(_class_entry(part, number))
    return {
        "image": image,
        "label": explanation.label,
        "predicted": explanation.predicted,
        "right": explanation.label == explanation.predicted,
        "classes": classes,
        "activated": [_evidence_entry(found) for found in explanation.activated],
    }


def _evidence_entry(found: Evidence) -> Json:
    return {
        "prototype": found.prototype,
        "class": found.prototype_class,
        "similarity": found.similarity,
        "row": found.row,
        "column": found.column,
        "box": list(found.box),
    }


def _class_entry(part: ClassExplanation, number: int) -> Json:
    return {
        "class": part.class_index,
        "logit": part.logit,
        "probability": part.probability,
        "shown": [_term_entry(term, number) for term in part.shown],
        "own": _remainder_entry(part.own),
        "others": _remainder_entry(part.others),
    }


def _term_entry(term: Term, number: int) -> Json:
    found = term.evidence
    return {
        "prototype": found.prototype,
        "similarity": found.similarity,
        "distance": found.distance,
        "weight": term.weight,
        "contribution": term.contribution,
        "row": found.row,
        "column": found.column,
        "box": list(found.box),
        "heatmap": _heatmap_name(number, term),
    }


def _remainder_entry(remainder: Remainder) -> Json:
    return {"prototypes": remainder.prototypes, "contribution": remainder.contribution}


def _heatmap_name(number: int, term: Term) -> str:
    return f"predictions/{number}-{term.evidence.prototype}.png"
