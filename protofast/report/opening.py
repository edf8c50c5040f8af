"""The opening of the page: what this network is and how good it is, in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from protofast.report import words
from protofast.report.files import Json, RunFiles
from protofast.report.prototypes import PrototypeView

_DATA = {
    "birds": "rendered birds",
    "cub": "photographs of birds (CUB-200-2011)",
    "cars": "photographs of cars (Stanford Cars)",
    "folders": "images in folders",
}


@dataclass(frozen=True)
class Fact:
    """A number with its name, and a remark."""

    name: str
    value: str
    remark: str = ""

    @property
    def is_text(self) -> bool:
        """Whether the value is words, which need smaller type than numbers."""
        return not self.value[:1].isdigit()


def headline(classes: list[str], prototypes: list[PrototypeView], projected: bool) -> str:
    """One line that says what the network has become."""
    if not prototypes:
        return "A prototype network in the making"
    kinds = words.count(len(classes), "class", "classes")
    if not projected:
        return f"{kinds}, {words.count(len(prototypes), 'prototype')}, not projected yet"
    patches = words.count(len(prototypes), "remembered patch", "remembered patches")
    return f"{kinds}, told apart by {patches}"


def lede(
    run: RunFiles, classes: list[str], prototypes: list[PrototypeView], projected: bool
) -> list[str]:
    """The summary in sentences: data, model, how it decides, how often it is right, warnings."""
    settings = run.settings or {}
    data, model = _table(settings, "data"), _table(settings, "model")
    backbone = model.get("backbone")
    network = f"This ProtoPNet (backbone {words.name(backbone)})" if backbone else "This network"
    sizes = (run.explanations or {}).get("set_sizes", {})
    images = f"{sizes['train']:,} " if "train" in sizes else ""
    kinds = f" in {words.count(len(classes), 'class', 'classes')}" if classes else ""
    kind = _DATA.get(str(data.get("kind")), "images")
    sentences = [f"{network} was trained on {images}{kind}{kinds}."]
    if prototypes and projected:
        sentences.append(
            "To classify a new image it compares its patches with "
            f"{words.count(len(prototypes), 'prototype')}, each a patch that it remembers from a "
            "training image, and adds up the similarities: this looks like that."
        )
    accuracy = _accuracy(run)
    if accuracy is not None:
        share, number, when = accuracy
        tested = f"{number:,} test images" if number else "its test images"
        chance = f"; guessing would name {words.percent(1 / len(classes))}" if classes else ""
        sentences.append(f"{when} {tested} it names {words.percent(share)} rightly{chance}.")
    flagged = sum(bool(view.flags) for view in prototypes)
    if flagged:
        carry = "carries" if flagged == 1 else "carry"
        sentences.append(f"{words.count(flagged, 'prototype')} {carry} a warning.")
    return sentences


def _accuracy(run: RunFiles) -> tuple[float, int | None, str] | None:
    """Accuracy, number of test images, and when it was measured."""
    if run.evaluation is not None and _is_number(run.evaluation.get("accuracy")):
        images = run.evaluation.get("images")
        return float(run.evaluation["accuracy"]), images if isinstance(images, int) else None, "Of"
    if run.explanations is not None and run.explanations["test"]["images"]:
        test = run.explanations["test"]
        return test["right"] / test["images"], int(test["images"]), "Of"
    tests = [row for row in run.metrics if row.get("kind") == "test"]
    if tests and _is_number(tests[-1].get("accuracy")):
        images = tests[-1].get("images")
        count = images if isinstance(images, int) else None
        return float(tests[-1]["accuracy"]), count, "At the last test during training, of"
    return None


def facts(run: RunFiles, prototypes: list[PrototypeView]) -> list[Fact]:
    """The main numbers."""
    found = []
    accuracy = _accuracy(run)
    if accuracy is not None:
        found.append(Fact("Test accuracy", words.percent(accuracy[0])))
    evaluation = run.evaluation or {}
    if _is_number(evaluation.get("balanced_accuracy")):
        found.append(
            Fact(
                "Balanced accuracy",
                words.percent(float(evaluation["balanced_accuracy"])),
                "mean over classes",
            )
        )
    if _is_number(evaluation.get("auroc")):
        found.append(
            Fact("AUROC", words.number(float(evaluation["auroc"]), 3), "one class against the rest")
        )
    if prototypes:
        flagged = sum(bool(view.flags) for view in prototypes)
        found.append(
            Fact(
                "Prototypes",
                f"{len(prototypes):,}",
                f"{flagged:,} with a warning" if flagged else "none with a warning",
            )
        )
    sizes = (run.explanations or {}).get("set_sizes", {})
    if sizes:
        found.append(Fact("Images", f"{sizes['train']:,} + {sizes['test']:,}", "training + test"))
    stage = _stage(run)
    if stage is not None:
        found.append(stage)
    return found


def _stage(run: RunFiles) -> Fact | None:
    name = ((run.explanations or {}).get("checkpoint") or {}).get("name")
    name = name or run.checkpoints.get("best") or run.checkpoints.get("latest")
    return None if name is None else Fact("Checkpoint", words.name(name), "shown here")


def _table(settings: Json, key: str) -> Json:
    value = settings.get(key)
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
