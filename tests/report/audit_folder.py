"""An audit folder as `protofast audit` leaves it, with invented numbers: what the report reads.

No model is trained: the numbers come from a fixed seed, the tables hold the values that they are
the means of, and the pictures are rendered birds with a box that "the attack" has moved.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from protofast.data import open_birds

IMAGES = 120
_MODELS = (
    {
        "name": "standard",
        "run": "runs/standard",
        "checkpoint": "last_layer-10",
        "checkpoint_sha256": "ab" * 32,
        "classes": 10,
        "prototypes": 100,
        "metric": "squared_l2",
        "similarity": "log",
        "accuracy": 0.967,
        "settings": {
            "model": {"backbone": "small", "depth": 64},
            "data": {"jpeg": {"compressed": "none"}},
            "training": {"batch_size": 40, "jpeg": {"probability": 0.0}},
        },
        "defences": [],
    },
    {
        "name": "aligned",
        "run": "runs/aligned",
        "checkpoint": "last_layer-10",
        "checkpoint_sha256": "cd" * 32,
        "classes": 10,
        "prototypes": 100,
        "metric": "squared_l2",
        "similarity": "log",
        "accuracy": 0.943,
        "settings": {
            "model": {"backbone": "small", "depth": 64},
            "data": {"jpeg": {"compressed": "half"}},
            "training": {"batch_size": 40, "jpeg": {"probability": 0.0}},
        },
        "defences": ["adversarial", "alignment", "masking"],
    },
)
# audit, title, protocol, settings, and of each number: key, label, unit, better, typical values
# of the two models, whether it is a share of images, whether the table has a column of it.
_AUDITS: tuple[tuple[str, str, str, dict[str, Any], tuple[tuple[Any, ...], ...]], ...] = (
    *(
        (
            "robust_accuracy",
            "Accuracy under attack",
            protocol,
            {"protocol": protocol, "epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10},
            (
                ("clean_accuracy", "Accuracy on clean images", "%", "higher", (96.7, 94.3), True),
                ("adversarial_accuracy", "Accuracy under PGD-10", "%", "higher", right, True),
            ),
        )
        for protocol, right in (("paper", (3.0, 61.0)), ("released", (7.0, 66.0)))
    ),
    *(
        (
            "head_on_stomach",
            "Head on Stomach",
            protocol,
            {"protocol": protocol, "epsilon": 8 / 255, "steps": 40, "top": 5, "classes": [1, 2]},
            (
                ("success_rate", "Images on which it succeeds", "%", "lower", rates, True),
                (
                    "mean_prototypes_tried",
                    "Prototypes tried per image",
                    "",
                    None,
                    (1.2, 3.9),
                    False,
                ),
                ("still_right", "Class kept after success", "%", None, (88.0, 97.0), True),
            ),
        )
        for protocol, rates in (
            ("paper", (92.0, 23.0)),
            ("released", (99.0, 41.0)),
            ("targeted", (71.0, 9.0)),
        )
    ),
    *(
        (
            "jpeg",
            "JPEG artefacts",
            protocol,
            {"protocol": protocol, "quality": 20, "codec": "simplejpeg"},
            (
                ("accuracy_altered", "Accuracy, classes compressed", "%", None, (97.0, 93.0), True),
                ("accuracy_original", "Accuracy, nothing compressed", "%", None, (51, 91), True),
                (
                    "similarity_change",
                    "Change of the top similarity",
                    "",
                    None,
                    (-2.4, -0.2),
                    False,
                ),
                (
                    "similarity_change_relative",
                    "Change of the top similarity",
                    "%",
                    "higher",
                    (-48.0, -5.0),
                    False,
                ),
                ("rank_correlation", "rank correlation", "", "higher", (0.62, 0.97), False),
                ("wrong_compressed", "named wrongly with its artefacts", "%", None, (3, 7), True),
            ),
        )
        for protocol in ("paper", "released")
    ),
    *(
        (
            "spatial_misalignment",
            "Spatial misalignment",
            protocol,
            {"protocol": protocol, "epsilon": 0.4, "steps": 40, "which": "top_proto"},
            (
                ("location_change", "PLC: highlighted area moved", "%", "lower", plc, False),
                ("activation_change", "PAC: activation lost", "%", "lower", pac, False),
                ("rank_change", "PRC: prototypes that overtake", "", "lower", prc, False),
                ("accuracy_before", "Accuracy before", "%", None, (96.7, 94.3), True),
                ("accuracy_after", "Accuracy after", "%", None, (40.0, 90.0), True),
                ("accuracy_change", "Accuracy lost", "points", "lower", (56.7, 4.3), False),
            ),
        )
        for protocol, plc, pac, prc in (
            ("paper", (61.0, 22.0), (47.0, 6.0), (14.0, 1.3)),
            ("released", (24.0, 8.0), (23.0, 2.0), (3.1, 0.2)),
        )
    ),
)


def write_audit_folder(folder: Path, *, pictures: int = 3, size: int = 96) -> Path:
    """Writes the folder and returns it.

    Args:
        folder: Is made.
        pictures: Of each audit.
        size: Sides of a picture, in pixels.
    """
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    data = open_birds(
        size=(size, size), classes=4, train_per_class=1, test_per_class=pictures, cache=False
    )
    shown = [data.test.image(position).permute(1, 2, 0).numpy() for position in range(pictures)]
    audits = []
    values: list[dict[str, np.ndarray]] = []  # of each audit, by the number's key
    for place, model in enumerate(_MODELS):
        for audit in _AUDITS:
            values.append({})
            name = str(model["name"])
            audits.append(_entry(folder, place, name, audit, shown, chance, values[-1]))
    content = {
        "format": 1,
        "seed": 0,
        "classes": [f"{number:03}.Kind_{number}" for number in range(10)],
        "data": {"description": "rendered birds of 10 species", "images": IMAGES},
        "models": list(_MODELS),
        "audits": audits,
        "comparisons": [
            _comparison(audits[first], number, values[first], values[first + len(_AUDITS)])
            for first in range(len(_AUDITS))
            for number in audits[first]["numbers"]
        ],
        "times": {
            "seconds": {"standard": {"head_on_stomach-paper": 61.2}},
            "environment": {"python": "3.11", "torch": "2.13", "device": "cpu"},
        },
    }
    (folder / "audit.json").write_text(json.dumps(content))
    return folder


def _entry(
    folder: Path,
    place: int,
    model: str,
    audit: tuple[str, str, str, dict[str, Any], tuple[tuple[Any, ...], ...]],
    shown: list[np.ndarray],
    chance: np.random.Generator,
    known: dict[str, np.ndarray],
) -> dict[str, Any]:
    """One audit of one model; its values image by image go into `known`, by the number's key."""
    name, title, protocol, settings, numbers = audit
    columns: dict[str, np.ndarray] = {}
    written = []
    for key, label, unit, better, typical, share in numbers:
        centre = typical[place]
        if share:
            values = 100.0 * (chance.random(IMAGES) < centre / 100)
        else:
            values = centre * chance.gamma(2.0, 0.5, IMAGES)
            values = np.minimum(values, 100.0) if unit == "%" else values
            columns[key] = values
        known[key] = values
        half = 1.96 * float(values.std()) / IMAGES**0.5
        value = float(values.mean())
        written.append(
            {
                "key": key,
                "label": label,
                "value": value,
                "unit": unit,
                "better": better,
                "n": IMAGES,
                "low": value - half,
                "high": value + half,
            }
        )
    table = f"tables/{model}-{name}-{protocol}.csv"
    (folder / "tables").mkdir(exist_ok=True)
    with (folder / table).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "name", "skipped", *columns])
        for row in range(IMAGES):
            rows.writerow([row, f"bird {row}", "", *(values[row] for values in columns.values())])
        rows.writerow([IMAGES, "flat", "flat map", *("" for _ in columns)])
    return {
        "model": place,
        "audit": name,
        "title": title,
        "protocol": protocol,
        "settings": settings,
        "seed": 0,
        "numbers": written,
        "rows": IMAGES + 1,
        "skipped": {"flat map": 1},
        "table": table,
        "pictures": [
            _picture(folder, f"pictures/{model}/{name}-{protocol}/{number}", number, image)
            for number, image in enumerate(shown)
            if name != "robust_accuracy"
        ],
    }


def _comparison(
    entry: dict[str, Any],
    number: dict[str, Any],
    first: dict[str, np.ndarray],
    second: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Of the two models, in one number."""
    differences = second[number["key"]] - first[number["key"]]
    half, value = 1.96 * float(differences.std()) / IMAGES**0.5, float(differences.mean())
    return {
        **number,
        "audit": entry["audit"],
        "protocol": entry["protocol"],
        "models": [0, 1],
        "value": value,
        "unit": "points" if number["unit"] == "%" else number["unit"],
        "low": value - half,
        "high": value + half,
        "differ": int((differences != 0).sum()),
    }


def _picture(folder: Path, stem: str, number: int, pixels: np.ndarray) -> dict[str, Any]:
    files = {}
    side = pixels.shape[0]
    for version, left in (("clean", 0.15), ("attacked", 0.55)):
        noise = np.random.default_rng(number).integers(-8, 9, pixels.shape)
        moved = pixels if version == "clean" else np.clip(pixels + noise, 0, 255).astype(np.uint8)
        image = Image.fromarray(moved)
        box = [left * side, 0.3 * side, (left + 0.3) * side, 0.6 * side]
        ImageDraw.Draw(image).rectangle(box, outline=(255, 223, 61), width=max(1, side // 80))
        path = folder / f"{stem}-{version}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        files[version] = f"{stem}-{version}.png"
    return {
        "files": files,
        "caption": f"Prototype {7 * number} (Kind 3) moves from the head to the stomach; its "
        f"similarity there rises from 0.8 to {4.6 - number / 10:.1f}, and the class stays.",
        "image": f"test/Kind_3/bird-{number}.png",
    }
