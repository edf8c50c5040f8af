"""What an audit folder says of a whole audit: ``audit.json`` and ``settings.toml``."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
import torch
from torch import Tensor

from protofast.audits.audit import Audit
from protofast.audits.files import FORMAT
from protofast.audits.subjects import AuditedModel
from protofast.data import ImageSet

# A defence, the table of training settings that asks for it, its key, and what stands for none.
_DEFENCES = (
    ("adversarial", "adversarial", "method", "none"),
    ("alignment", "alignment", "weight", 0),
    ("masking", "masking", "probability", 0),
    ("jpeg", "jpeg", "probability", 0),
)


class Predicted(NamedTuple):
    """What a model makes of the images as they are.

    classes: int64 [n], the class that it names for each, on the CPU. computed: how many of them
    were computed how; see `protofast.audits.computed`.
    """

    classes: Tensor
    computed: dict[str, int]


def audit_text(content: Mapping[str, Any]) -> str:
    """``audit.json``; its numbers are finite or null."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def describe_audit(
    models: Sequence[AuditedModel],
    identities: Sequence[str],
    predictions: Sequence[Predicted],
    images: ImageSet,
    seed: int,
) -> dict[str, Any]:
    """What ``audit.json`` says before its results.

    Args:
        models: The audited models.
        identities: The SHA-256 of each one's checkpoint or weights.
        predictions: What each names.
        images: The images.
        seed: Key of the random numbers.
    """
    return {
        "format": FORMAT,
        "seed": seed,
        "classes": list(images.classes),
        "data": {"description": images.description, "images": len(images)},
        "models": [
            _model(*each, images) for each in zip(models, identities, predictions, strict=True)
        ],
    }


def settings_text(models: Sequence[AuditedModel], audits: Sequence[Audit[Any]], seed: int) -> str:
    """``settings.toml``: what is audited, and how."""
    said = {
        "seed": seed,
        "models": {
            each.name: {"run": _unicode(each.run), "checkpoint": each.checkpoint} for each in models
        },
        "audits": [
            {"audit": each.name, **each.settings.model_dump(mode="json", exclude_none=True)}
            for each in audits
        ],
    }
    return tomli_w.dumps(said)


def defences(facts: Mapping[str, Any]) -> list[str]:
    """What a run's settings did against what the audits measure: names, as in ``audit.json``."""
    training = facts.get("training", {})
    return [
        name
        for name, table, key, none in _DEFENCES
        if training.get(table, {}).get(key, none) != none
    ]


def environment(models: Sequence[AuditedModel]) -> dict[str, Any]:
    """When and with what an audit was finished."""
    return {
        "written": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "protofast": version(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "devices": sorted({str(each.model.prototypes.device) for each in models}),
    }


@functools.cache
def version() -> str | None:
    """Protofast's version, or None for a source tree that is not installed."""
    try:
        return version_of("protofast")
    except PackageNotFoundError:
        return None


@functools.cache
def sources_checksum() -> str:
    """SHA-256 of the sources that rows come from, so that those of older code are not kept."""
    package = Path(__file__).parents[1]
    others = ("heatmaps.py", "data/jpeg.py", "data/randomness.py")
    files = [*package.glob("audits/*.py"), *package.glob("attacks/*.py")]
    files += [package / name for name in others]
    said = hashlib.sha256()
    for file in sorted(files):
        said.update(f"{file.relative_to(package)};".encode())
        said.update(hashlib.sha256(file.read_bytes()).digest())
    return said.hexdigest()


def _unicode(path: str) -> str:
    """A path with escapes for the bytes of other encodings, which TOML cannot hold."""
    return path.encode(errors="backslashreplace").decode()


def _model(
    audited: AuditedModel, identity: str, predictions: Predicted, images: ImageSet
) -> dict[str, Any]:
    described = audited.facts.get("model", {})
    right = int((predictions.classes == images.labels).sum())
    return {
        "name": audited.name,
        "run": audited.run or None,
        "checkpoint": audited.checkpoint or None,
        "checkpoint_sha256": identity,
        "classes": audited.model.num_classes,
        "prototypes": audited.model.num_prototypes,
        "metric": described.get("metric"),
        "similarity": described.get("similarity"),
        "accuracy": right / len(images),
        "computed": predictions.computed,
        "settings": dict(audited.facts),
        "defences": defences(audited.facts),
    }
