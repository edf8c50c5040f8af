"""What each audit asks and what its numbers mean, in plain words; the verdict on a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from protofast.report import words
from protofast.report.audit_files import Measure, Result, finite_number
from protofast.report.published import (
    ACCURACY,
    HEAD_ON_STOMACH,
    JPEG,
    JPEG_AUGMENTED,
    JPEG_SIMILARITY,
    SPATIAL_MISALIGNMENT,
    PublishedTable,
)

_NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Subject:
    """An audit in words.

    Attributes:
        name: As in ``audit.json``.
        short: Its name in the contents and as the head of a column.
        question: What it asks of a model.
        method: How it asks.
        low: What a low main number means.
        high: What a high one means.
        main: Key of the main number.
        verdict: What a result says of its model, as the end of a sentence; None without numbers.
        charted: Keys of the numbers to draw, in this order.
        protocols: What each protocol does.
        tables: The papers' tables beside which its numbers stand.
    """

    name: str
    short: str
    question: str
    method: str
    low: str
    high: str
    main: str
    verdict: Callable[[Result], str | None]
    charted: tuple[str, ...]
    protocols: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[PublishedTable, ...] = ()


# What the known numbers are called wherever models stand side by side.
LABELS = {
    "clean_accuracy": "Accuracy on the images as they are",
    "adversarial_accuracy": "Named rightly under attack",
    "success_rate": "Images on which it succeeds",
    "mean_prototypes_tried": "Prototypes attacked per image",
    "still_right": "Of these, images that keep their class",
    "similarity_change": "Change of the top similarity",
    "similarity_change_relative": "Change of the top similarity",
    "similarity_falls": "Images on which it falls",
    "rank_correlation": "Rank correlation of all similarities",
    "top_k_overlap": "Most similar prototypes that stay the same",
    "accuracy_altered": "Accuracy, half the classes compressed",
    "accuracy_original": "Accuracy, nothing compressed",
    "accuracy_all_compressed": "Accuracy, all images compressed",
    "location_change": "Highlighted area moved (PLC)",
    "activation_change": "Activation lost (PAC)",
    "rank_change": "Prototypes that overtake (PRC)",
    "accuracy_before": "Accuracy before",
    "accuracy_after": "Accuracy after",
    "accuracy_change": "Accuracy lost",
}


# ----- numbers in words -----


def amount(measure: Measure | None, *, sign: bool = False) -> str:
    """A number with its unit, a dash where there is none; `sign` writes a plus as well."""
    if measure is None or measure.value is None:
        return words.DASH
    return with_unit(measure.value, measure.unit, sign=sign)


def with_unit(value: float, unit: str, *, sign: bool = False) -> str:
    """A value as the report writes it: percentages and points with one decimal, others with two."""
    plus = "+" if sign and value > 0 else ""
    text = plus + words.number(value, 1 if unit else 2)
    return {"%": f"{text}{words.THIN}%", "": text}.get(unit, f"{text} {unit}")


def interval(measure: Measure) -> str:
    """Its 95 % interval without the unit; empty where there is none."""
    if measure.low is None or measure.high is None:
        return ""
    low, high = (words.number(end, measure.digits) for end in (measure.low, measure.high))
    return f"{low} to {high}"


def stated(measure: Measure) -> str:
    """``92.5 % (95 % interval 88.0 to 95.4, n = 200)``."""
    text = amount(measure)
    between = interval(measure)
    inside = [f"95{words.THIN}% interval {between}"] if between else []
    inside += [f"n{_NBSP}={_NBSP}{measure.n:,}"] if measure.n else []
    return f"{text} ({', '.join(inside)})" if inside else text


def how_often(share: float) -> str:
    """A share of images, in per cent, in plain words."""
    steps = (
        (100.0, "every image"),
        (90.0, "nearly all images"),
        (50.0, "most images"),
        (25.0, "many images"),
        (5.0, "some images"),
    )
    for least, said in steps:
        if share >= least:
            return said
    return "few images" if share > 0 else "no image"


def radius(result: Result) -> str:
    """The largest change of a pixel that an attack may make, as a fraction of 255; or nothing."""
    value = finite_number(result.settings.get("epsilon"))
    if value is None or not 0 < value < 1:
        return ""
    steps = 255 * value
    return f"{words.number(steps, 0 if abs(steps - round(steps)) < 1e-6 else 1)}/255"


def _in_steps(result: Result) -> str:
    """`` in 10 steps``; nothing where the settings do not say how many."""
    steps = result.settings.get("steps")
    return f" in {words.count(steps, 'step')}" if type(steps) is int and steps > 0 else ""


def _of(result: Result, key: str) -> Measure | None:
    measure = result.numbers.get(key)
    return None if measure is None or measure.value is None else measure


def _value(measure: Measure) -> float:
    assert measure.value is not None  # _of gives no others
    return measure.value


def _size(measure: Measure) -> str:
    """A change without its sign, which the words around it say; its interval turned along."""
    if _value(measure) >= 0:
        return stated(measure)
    low, high = (None if end is None else -end for end in (measure.high, measure.low))
    return stated(replace(measure, value=-_value(measure), low=low, high=high))


def _includes_zero(measure: Measure) -> bool:
    """Whether it may be nothing, as far as its interval tells."""
    if measure.low is None or measure.high is None:
        return _value(measure) == 0
    return measure.low <= 0 <= measure.high


# ----- the verdicts -----


def _robust_verdict(result: Result) -> str | None:
    clean, attacked = _of(result, "clean_accuracy"), _of(result, "adversarial_accuracy")
    if attacked is None:
        return None
    before = (
        "" if clean is None else f"names {amount(clean)} of the images rightly as they are and "
    )
    verb = "" if clean is not None else "names "
    size = radius(result)
    noise = f"changes of at most {size} per pixel" if size else "small changes of the pixels"
    return f"{before}{verb}{stated(attacked)} when {noise} are made against it{_in_steps(result)}"


def _head_verdict(result: Result) -> str | None:
    success = _of(result, "success_rate")
    if success is None:
        return None
    size = radius(result)
    noise = f"noise of at most {size} per pixel" if size else "noise that nobody sees"
    text = (
        f"on {how_often(_value(success))}, {stated(success)}, {noise} moves one of the strongest "
        "prototypes to another place"
    )
    still = _of(result, "still_right")
    if still is not None:
        text += f"; {amount(still)} of these images keep their class all the while"
    return text


def _jpeg_verdict(result: Result) -> str | None:
    change = _of(result, "similarity_change")
    if change is None:
        return None
    if _includes_zero(change):
        text = (
            "removing the JPEG artefacts changes the strongest prototype’s similarity by "
            f"{stated(change)}, which may be nothing"
        )
    else:
        moved = "falls" if _value(change) < 0 else "rises"
        text = (
            "when the JPEG artefacts are removed, the strongest prototype’s similarity "
            f"{moved} by {_size(change)}"
        )
    relative = _of(result, "similarity_change_relative")
    if relative is not None and not _includes_zero(change):
        text += f", or {with_unit(abs(_value(relative)), relative.unit)}"
    altered, original = _of(result, "accuracy_altered"), _of(result, "accuracy_original")
    if altered is not None and original is not None:
        text += f"; its accuracy goes from {amount(altered)} to {amount(original)}"
    return text


def _misalignment_verdict(result: Result) -> str | None:
    change = _of(result, "activation_change")
    if change is None:
        return None
    how = "random noise" if result.protocol == "released" else "changing pixels"
    what, ways = ("takes", "from") if _value(change) >= 0 else ("adds", "to")
    text = (
        f"{how} only outside the box {what} {_size(change)} {ways} the strongest prototype’s "
        "activation"
    )
    location, rank = _of(result, "location_change"), _of(result, "rank_change")
    if location is not None:
        text += f", moves {amount(location)} of the highlighted area"
    if rank is not None:
        text += f", and lets {amount(rank)} other prototypes overtake it on average"
    return text


SUBJECTS = (
    Subject(
        name="robust_accuracy",
        short="Accuracy under attack",
        question="Does the network keep to its class when pixels are changed against it?",
        method=(
            "Each image that is named rightly is attacked by projected gradient descent that "
            "raises the error of the class, within a radius that hardly shows; in the paper by ten "
            "steps of it (PGD-10)."
        ),
        low="The class itself can be changed at will, whatever the explanation says.",
        high="The class survives this attack. That says nothing yet of the explanation.",
        main="adversarial_accuracy",
        verdict=_robust_verdict,
        charted=("clean_accuracy", "adversarial_accuracy"),
        protocols={
            "paper": "an image that is named wrongly as it is counts as wrong under attack too",
            "released": "as the authors’ code does, every image is attacked and the image itself "
            "is not looked at, so noise may set a wrong one right",
        },
        tables=(ACCURACY,),
    ),
    Subject(
        name="head_on_stomach",
        short="Head on Stomach",
        question="Can noise that nobody sees move what a prototype looks at?",
        method=(
            "For each rightly named image, its strongest prototypes are taken in turn, and noise "
            "is sought that makes the prototype most similar to another part of the image: the "
            "prototype of a head, found on the stomach. Counted is the share of images on which "
            "this succeeds for one of them (Hoffmann et al. 2021, section 3)."
        ),
        low="The attack did not get the prototypes away from their places. Another one might.",
        high=(
            "Where a prototype is found can be changed at will, so the heat map is no proof of "
            "what the network looked at."
        ),
        main="success_rate",
        verdict=_head_verdict,
        charted=("success_rate", "mean_prototypes_tried", "still_right"),
        protocols={
            "paper": "every cell outside the prototype’s box is a target, noise on the targets’ "
            "pixels and the box’s alike; success if the maximum leaves the box",
            "released": "what the authors’ code computes: in effect noise on the whole image that "
            "raises the similarity everywhere",
            "targeted": "a single random cell outside the box is the target, and the noise stays "
            "inside it: the attack of the paper’s figures",
        },
        tables=(HEAD_ON_STOMACH,),
    ),
    Subject(
        name="jpeg",
        short="JPEG artefacts",
        question="Does a prototype’s likeness rest on artefacts that no heat map shows?",
        method=(
            "Test images of half the classes are compressed by JPEG: of a network that was trained "
            "on such images, those of the same classes. Then the artefacts are removed: what the "
            "network called “this looks like that” stays in the picture, and the similarity "
            "should stay too (Hoffmann et al. 2021, section 4). Only a network that was trained so "
            "can have learned the artefacts as a mark of the class."
        ),
        low=(
            "Far below zero: much of the similarity was compression artefacts, which the heat map "
            "presents as a part of the thing shown."
        ),
        high="Near zero: the prototype sees the same with and without the artefacts.",
        main="similarity_change_relative",
        verdict=_jpeg_verdict,
        charted=(
            "similarity_change",
            "similarity_change_relative",
            "similarity_falls",
            "rank_correlation",
            "top_k_overlap",
            "accuracy_altered",
            "accuracy_original",
            "accuracy_all_compressed",
        ),
        protocols={
            "paper": "a random half of the classes is compressed, or those that were compressed "
            "when the network was trained",
            "released": "every class with an odd number is compressed, as the authors’ code does, "
            "or those that were compressed when the network was trained",
        },
        tables=(JPEG, JPEG_AUGMENTED, JPEG_SIMILARITY),
    ),
    Subject(
        name="spatial_misalignment",
        short="Spatial misalignment",
        question="Does the similarity come from where the heat map says it does?",
        method=(
            "The box around the strongest prototype’s place is protected, and only pixels outside "
            "it are changed. If the heat map told the whole truth, nothing would happen (Sacha et "
            "al. 2024). PAC is how much of the activation is lost, PLC how much of the highlighted "
            "area moves, PRC how many other prototypes overtake it."
        ),
        low="What lies outside the box hardly matters: the evidence is where the box is.",
        high="Much of the similarity came from outside the box that claims to explain it.",
        main="activation_change",
        verdict=_misalignment_verdict,
        charted=(
            "location_change",
            "activation_change",
            "rank_change",
            "accuracy_before",
            "accuracy_after",
            "accuracy_change",
        ),
        protocols={
            "paper": "a real attack: projected gradient descent lowers the prototype’s activation",
            "released": "what the authors’ code computes: uniform noise outside the box, no attack",
        },
        tables=(SPATIAL_MISALIGNMENT,),
    ),
)


def subject_of(result: Result) -> Subject:
    """The words for a result's audit; plain ones for an audit that this version does not know."""
    for subject in SUBJECTS:
        if subject.name == result.audit:
            return subject
    return Subject(
        name=result.audit,
        short=words.shortened(result.title, 40),
        question=result.title,
        method="",
        low="",
        high="",
        main=next(iter(result.numbers), ""),
        verdict=lambda result: None,
        charted=tuple(result.numbers),
    )
