"""What each prototype of a run stands for: its source patch, the nearest patches, its health."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protofast.data import ImageSet
from protofast.errors import RunFolderError
from protofast.explain.album import Album
from protofast.explain.files import Json
from protofast.explain.local import unit_contributions
from protofast.explain.passes import SourceSpot, Spot, TrainingFacts
from protofast.explain.pictures import crop_png
from protofast.models.protocol import Output, PrototypeModel
from protofast.pruning import NearestImages
from protofast.sameness import nearly_same

_SAME_SHOWN = 12  # of the prototypes that one is the same as: it may be thousands


@dataclass(frozen=True)
class Source:
    """The training patch that a prototype is, as the projection wrote it down."""

    image: int
    location: int
    distance: float | None
    moved: float | None


def read_rows(run_folder: Path) -> list[Mapping[str, Any]]:
    """The rows of ``prototypes/prototypes.json``; none before the first projection.

    Raises:
        RunFolderError: The file is damaged.
    """
    path = run_folder / "prototypes" / "prototypes.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise RunFolderError(f"{path}: not readable as JSON ({error}); project again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RunFolderError(f"{path}: expected a list of objects; project again")
    return rows


def sources_of(
    rows: Sequence[Mapping[str, Any]], model: PrototypeModel, train: ImageSet
) -> list[Source | None]:
    """The source patch of every prototype; None for those that have none.

    Raises:
        RunFolderError: The rows tell of other prototypes or other images than these.
    """
    if not rows:
        return [None] * model.num_prototypes
    if len(rows) != model.num_prototypes:
        raise RunFolderError(
            f"the projection tells of {len(rows)} prototypes, but the checkpoint has "
            f"{model.num_prototypes}; explain the checkpoint it belongs to, or project again"
        )
    try:
        return [_source(row, train) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise RunFolderError(
            f"the rows of the projection are not what protofast writes ({what}); project again"
        ) from error


def _source(row: Mapping[str, Any], train: ImageSet) -> Source | None:
    image = row.get("image_index")
    if image is None or image < 0:
        return None
    if image >= len(train) or train.names[image] != row.get("image", train.names[image]):
        there = repr(train.names[image]) if image < len(train) else "nothing"
        raise RunFolderError(
            f"prototype {row.get('prototype')} comes from image {row.get('image')!r}, but the data "
            f"have {there} in its place now; they have changed since the projection, project again"
        )
    return Source(
        image=int(image),
        location=int(row["location"]),
        distance=finite(row.get("distance")),
        moved=finite(row.get("moved")),
    )


def finite(value: Any) -> float | None:
    """A number for JSON, which knows neither NaN nor infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Gallery:
    """All that is known of the prototypes; lists are in their order.

    Attributes:
        sources: Where they come from.
        source_spots: What has become of their source patch; None without a source.
        nearest: Per set, the nearest images.
        nearest_spots: Per set, where they look on these, by (prototype, image).
        facts: How they share the training images.
    """

    sources: Sequence[Source | None]
    source_spots: Sequence[SourceSpot | None]
    nearest: Mapping[str, NearestImages]
    nearest_spots: Mapping[str, Mapping[tuple[int, int], Spot]]
    facts: TrainingFacts


def describe(
    gallery: Gallery,
    model: PrototypeModel,
    album: Album,
    add: Callable[[str, bytes], None],
) -> list[Json]:
    """The list ``prototypes`` of the summary; pictures go to ``add``."""
    weights = own_weights(model)
    classes = None if model.prototype_class is None else model.prototype_class.tolist()
    alike = likenesses(model.prototypes, gallery.sources)
    entries = []
    for j, source in enumerate(gallery.sources):
        spot = gallery.source_spots[j]
        entry: Json = {
            "prototype": j,
            "class": None if classes is None else classes[j],
            "weight": None if weights is None else round(float(weights[j]), 6),
            "source": None,
            "crop": None,
            "heatmap": None,
            "nearest": {name: _nearest(gallery, name, j, album) for name in ("train", "test")},
            "wins": int(gallery.facts.wins[j]),
            "of": int(gallery.facts.of[j]),
            "flags": _flags(gallery, j, alike[j]),
            "same_as": alike[j].first,
            "same_as_count": alike[j].count,
        }
        if source is not None and spot is not None:
            entry["crop"], entry["heatmap"] = f"prototypes/{j}.png", f"prototypes/{j}-heat.png"
            add(entry["crop"], crop_png(album.sets["train"].image(source.image), spot.box))
            add(entry["heatmap"], spot.heatmap)
            entry["source"] = {
                "image": album.key("train", source.image),
                "row": source.location // spot.columns,
                "column": source.location % spot.columns,
                "box": list(spot.box),
                "distance": source.distance,
                "similarity": finite(spot.similarity),
                "apart": finite(spot.apart),
                "moved": source.moved,
            }
        entries.append(entry)
    return entries


@torch.no_grad()
def own_weights(model: PrototypeModel) -> Tensor | None:
    """The weight of each prototype for its own class [P], on the CPU; None without classes.

    Read through the model protocol: what it would contribute to its class with similarity 1.
    """
    if model.prototype_class is None:
        return None
    count, device = model.num_prototypes, model.prototypes.device
    blank = torch.zeros((1, count), device=device)
    output = Output(
        logits=torch.zeros((1, model.num_classes), device=device),
        activations=blank,
        distances=blank,
        locations=torch.zeros((1, count), dtype=torch.int64, device=device),
    )
    weights = unit_contributions(model, output)[0]  # [C, P]
    return weights[model.prototype_class, torch.arange(count, device=device)].cpu()


@dataclass(frozen=True)
class Likeness:
    """Which other prototypes a prototype is the same as.

    Attributes:
        duplicate: Whether one of them comes from the same patch of the same image.
        collapsed: Whether one of them, from another patch, is nearly the same vector.
        first: The first of either kind.
        count: How many there are.
    """

    duplicate: bool
    collapsed: bool
    first: list[int]
    count: int


@torch.no_grad()
def likenesses(prototypes: Tensor, sources: Sequence[Source | None]) -> list[Likeness]:
    """Which others of [P, D] each prototype is the same as."""
    patches: dict[tuple[int, int], int] = {}
    # The number of each prototype's patch; without one, a number of its own.
    keys = [
        -1 - j if source is None else patches.setdefault((source.image, source.location), j)
        for j, source in enumerate(sources)
    ]
    patch = torch.tensor(keys, device=prototypes.device)  # [P]
    found: list[Likeness] = []
    for start, near in nearly_same(prototypes):
        own = torch.arange(start, start + len(near), device=near.device)
        same = patch[own, None] == patch  # [n, P]
        same[torch.arange(len(own)), own] = near[torch.arange(len(own)), own] = False
        duplicate, collapsed = same.any(dim=1).tolist(), (near & ~same).any(dim=1).tolist()
        either = (near | same).cpu()
        for row, others in enumerate(either):
            first: list[int] = others.nonzero()[:_SAME_SHOWN, 0].tolist()
            found.append(Likeness(duplicate[row], collapsed[row], first, int(others.sum())))
    return found


def _nearest(gallery: Gallery, set_name: str, prototype: int, album: Album) -> list[Json]:
    nearest = gallery.nearest.get(set_name)
    if nearest is None:
        return []
    rows = []
    for rank, image in enumerate(nearest.images[prototype].tolist()):
        if image < 0:
            continue
        spot = gallery.nearest_spots[set_name][(prototype, image)]
        rows.append(
            {
                "image": album.key(set_name, image),
                "box": list(spot.box),
                "distance": finite(float(nearest.distances[prototype, rank])),
                "similarity": finite(spot.similarity),
            }
        )
    return rows


def _flags(gallery: Gallery, prototype: int, alike: Likeness) -> list[str]:
    facts = gallery.facts
    flags = []
    if alike.duplicate:
        flags.append("duplicate")
    if alike.collapsed:
        flags.append("collapsed")
    if int(facts.of[prototype]) > 0 and int(facts.wins[prototype]) == 0:
        flags.append("never_wins")
    if int(facts.of[prototype]) == 0:
        flags.append("empty_class")
    spot = gallery.source_spots[prototype]
    if spot is None:
        flags.append("not_projected")
    elif spot.strayed:
        flags.append("strayed")
    return flags
