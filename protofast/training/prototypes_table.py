"""Where each prototype came from, as the rows of ``prototypes/prototypes.json``."""

from __future__ import annotations

import math
from typing import Any

import torch

from protofast.data import ImageSet
from protofast.heatmaps import high_activation_boxes, upsample
from protofast.models import ProtoPNet
from protofast.projection import Projection
from protofast.scan import evaluating

_AT_ONCE = 64  # prototypes whose source images are looked at together


def prototype_rows(
    model: ProtoPNet, projection: Projection, images: ImageSet
) -> list[dict[str, Any]]:
    """One row per prototype, of plain JSON values.

    Keys: ``prototype``, ``class``, ``class_name``; ``image`` (name) and ``image_index`` of the
    source image; ``location`` in the latent map and its ``row`` and ``col``; ``box`` [x0, y0, x1,
    y1] in pixels around what is at or above the 95th percentile of the prototype's up-sampled
    similarity to the source image; ``distance`` of the prototype as it was to this patch, in the
    model's metric; ``moved``, the Euclidean length of its jump. A prototype whose class has no
    image has None from ``image`` to ``box``, and in ``distance``.

    Args:
        model: After the projection.
        projection: What it found.
        images: The set that was projected on.
    """
    boxes, width = _boxes(model, projection, images)
    rows: list[dict[str, Any]] = []
    for number in range(model.num_prototypes):
        label = int(model.prototype_class[number])
        index, location = int(projection.images[number]), int(projection.locations[number])
        found = index >= 0
        distance = float(projection.distances[number])
        rows.append(
            {
                "prototype": number,
                "class": label,
                "class_name": images.classes[label],
                "image": images.names[index] if found else None,
                "image_index": index if found else None,
                "location": location if found else None,
                "row": location // width if found else None,
                "col": location % width if found else None,
                "box": boxes[number] if found else None,
                "distance": distance if math.isfinite(distance) else None,
                "moved": float(projection.moved[number]),
            }
        )
    return rows


def _boxes(
    model: ProtoPNet, projection: Projection, images: ImageSet
) -> tuple[dict[int, list[int]], int]:
    """The box of each prototype that has a source image, and the width W of the latent map."""
    boxes: dict[int, list[int]] = {}
    width = 1
    found = (projection.images >= 0).nonzero()[:, 0]
    device = model.prototypes.device
    with evaluating(model):
        for numbers in found.split(_AT_ONCE):
            pixels = torch.stack([images.image(int(projection.images[k])) for k in numbers])
            features = model.features(pixels.to(device).float() / 255)
            maps = model.similarity_map(features, numbers.to(device)[:, None])  # [K, 1, H, W]
            width = maps.shape[3]
            heatmaps = upsample(maps[:, 0].cpu(), (pixels.shape[2], pixels.shape[3]))
            pairs = zip(numbers.tolist(), high_activation_boxes(heatmaps).tolist(), strict=True)
            boxes.update(pairs)
    return boxes, width
