"""Explanations of a whole run: every prototype, and a sample of predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from protofast.data import ImageSet, Splits
from protofast.errors import DataError
from protofast.explain.album import Album
from protofast.explain.files import FORMAT, Json, Writer, checkpoint_identity
from protofast.explain.gallery import Gallery, Source, describe, finite, read_rows, sources_of
from protofast.explain.passes import (
    Decisions,
    SourceSpot,
    Spot,
    batches_of,
    decisions,
    source_spots,
    spots,
    training_facts,
)
from protofast.explain.samples import (
    RIGHT_RULE,
    WRONG_RULE,
    choose_right,
    choose_wrong,
    describe_predictions,
)
from protofast.heatmaps import INTERPOLATION, PERCENTILE
from protofast.models.protocol import PrototypeModel
from protofast.models.receptive_field import ReceptiveField
from protofast.pruning import NearestImages, nearest_images
from protofast.scan import evaluating

# How many nearest images are shown of each prototype, so that the report can still be sent around.
_NEAREST = ((300, 5), (1000, 3))  # up to so many prototypes: so many images
_NEAREST_OF_MANY = 2

Progress = Callable[[str, int, int], None]  # called with (what is done, images done, images in all)


def explain_run(
    run_folder: Path | str,
    model: PrototypeModel,
    splits: Splits,
    *,
    checkpoint: str,
    nearest: int | None = None,
    samples: int = 12,
    top: int = 4,
    seed: int = 0,
    batch_size: int = 64,
    prototypes: Sequence[Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Explains a run and writes the folder ``explanations`` (see :mod:`protofast.explain.files`).

    Everything runs on the model's device in batches: each set goes through the network twice, the
    few images that are shown once more. An older explanation is replaced only when the new one is
    complete.

    Args:
        run_folder: The run folder.
        model: The model with the weights to explain.
        splits: The run's data; ``project`` are the training images without augmentation.
        checkpoint: Name of the checkpoint the weights come from (stem of its file), written down
            so that the report can tell whether the explanations still belong to the run.
        nearest: How many nearest training and test images are shown of each prototype; by default
            5, 3 if there are more than 300 prototypes, 2 if there are more than 1,000.
        samples: How many right predictions are explained, and how many wrong ones.
        top: How many prototypes are shown per explained class.
        seed: Key of the random sample.
        batch_size: Images per batch.
        prototypes: Where this checkpoint's prototypes come from, as rows of
            ``prototypes/prototypes.json`` (none: not projected). Left out, that file is read, which
            tells of the run's latest projection.
        progress: Called after each batch.

    Returns:
        The folder.

    Raises:
        RunFolderError: The run folder is missing, or its projection belongs to other prototypes or
            other images.
        DataError: An image cannot be read, or a set is empty.
        OSError: The disk is full, say; an older explanation is still there.
    """
    run_folder = Path(run_folder)
    if nearest is None:
        few = (shown for most, shown in _NEAREST if model.num_prototypes <= most)
        nearest = next(few, _NEAREST_OF_MANY)
    _check(model, splits, nearest=nearest, samples=samples)
    report = progress or _silent
    with Writer(run_folder) as writer:
        rows = read_rows(run_folder) if prototypes is None else prototypes
        sources = sources_of(rows, model, splits.project)
        album = Album({"train": splits.project, "test": splits.test})
        found = decisions(
            model,
            splits.test,
            batch_size=batch_size,
            progress=lambda done: report("test images", done, len(splits.test)),
        )
        gallery = _gallery(model, splits, sources, nearest, batch_size, report)
        grid = _grid(model, splits.project)
        entries = describe(gallery, model, album, writer.add)
        right = choose_right(found, samples, seed=seed)
        wrong = choose_wrong(found, samples)
        predictions = describe_predictions(
            model, album, right + wrong, top=top, batch_size=batch_size, add=writer.add
        )
        summary: Json = {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "protofast": _version(),
            "checkpoint": checkpoint_identity(run_folder, checkpoint),
            "classes": list(splits.project.classes),
            "set_sizes": {"train": len(splits.project), "test": len(splits.test)},
            "model": _model_entry(model, grid, entries),
            "heatmap": {"interpolation": INTERPOLATION, "percentile": PERCENTILE},
            "images": album.write(writer.add),
            "prototypes": entries,
            "test": {"images": len(splits.test), "right": _right(found)},
            "sampling": {"seed": seed, "right": RIGHT_RULE, "wrong": WRONG_RULE},
            "predictions": predictions,
            "notes": _notes(gallery),
        }
        return writer.finish(summary)


def _gallery(
    model: PrototypeModel,
    splits: Splits,
    sources: list[Source | None],
    count: int,
    batch_size: int,
    report: Progress,
) -> Gallery:
    facts = training_facts(
        model,
        splits.project,
        batch_size=batch_size,
        progress=lambda done: report("training images", done, len(splits.project)),
    )
    near: dict[str, NearestImages] = {}
    near_spots: dict[str, dict[tuple[int, int], Spot]] = {}
    for name, image_set in (("train", splits.project), ("test", splits.test)):
        near[name] = _nearest(model, name, image_set, count, batch_size, report)
        near_spots[name] = _nearest_spots(model, near[name], image_set, batch_size)
    return Gallery(
        sources, _source_spots(model, sources, splits, batch_size), near, near_spots, facts
    )


def _nearest(
    model: PrototypeModel,
    name: str,
    image_set: ImageSet,
    count: int,
    batch_size: int,
    report: Progress,
) -> NearestImages:
    return nearest_images(
        model,
        batches_of(image_set, batch_size),
        k=count,
        progress=lambda done: report(f"nearest {name} images", done, len(image_set)),
    )


def _nearest_spots(
    model: PrototypeModel, near: NearestImages, image_set: ImageSet, batch_size: int
) -> dict[tuple[int, int], Spot]:
    pairs = [
        (prototype, image)
        for prototype, row in enumerate(near.images.tolist())
        for image in row
        if image >= 0
    ]
    found = spots(
        model,
        image_set,
        [image for _, image in pairs],
        [prototype for prototype, _ in pairs],
        batch_size=batch_size,
    )
    return dict(zip(pairs, found, strict=True))


def _source_spots(
    model: PrototypeModel, sources: list[Source | None], splits: Splits, batch_size: int
) -> list[SourceSpot | None]:
    projected = [(j, source) for j, source in enumerate(sources) if source is not None]
    found: list[SourceSpot | None] = [None] * len(sources)
    shown = source_spots(
        model,
        splits.project,
        [source.image for _, source in projected],
        [j for j, _ in projected],
        [source.location for _, source in projected],
        batch_size=batch_size,
    )
    for (j, _), spot in zip(projected, shown, strict=True):
        found[j] = spot
    return found


def _grid(model: PrototypeModel, image_set: ImageSet) -> tuple[int, int] | None:
    """(H, W) of the latent grid; None where images, and so their grids, differ in size."""
    if image_set.size is None:
        return None
    device = model.prototypes.device
    (batch,) = batches_of(image_set.subset([0]), 1)
    with evaluating(model):
        features = model.features(batch.images.to(device))
        first = torch.zeros((1, 1), dtype=torch.int64, device=device)
        height, width = model.similarity_map(features, first).shape[2:]
    return height, width


def _model_entry(
    model: PrototypeModel, grid: tuple[int, int] | None, prototypes: list[Json]
) -> Json:
    field = model.receptive_field()
    near = [
        row["similarity"]
        for entry in prototypes
        for row in entry["nearest"]["train"]
        if row["similarity"] is not None
    ]
    return {
        "input_size": list(model.input_size),
        "channels": model.num_channels,
        "grid": None if grid is None else list(grid),
        "prototypes": model.num_prototypes,
        "largest_similarity": finite(max(near, default=None)),
        "receptive_field": None if field is None else _field_entry(field),
    }


def _field_entry(field: ReceptiveField) -> Json:
    cells, (height, width) = field.grid[0] * field.grid[1], field.image
    whole = sum(field.box(location) == (0, 0, width, height) for location in range(cells))
    return {"size": field.size, "jump": field.jump, "cells": cells, "whole": whole}


def _notes(gallery: Gallery) -> list[str]:
    """What the reader must know to judge the prototypes."""
    sources = gallery.sources
    missing = sum(source is None for source in sources)
    if missing == len(sources):
        return [
            "The prototypes were never projected: none of them is a patch of a training image. "
            "What is shown are the training patches nearest to them."
        ]
    notes = []
    if missing:
        notes.append(
            f"{missing} of {len(sources)} prototypes have no source patch, because their class had "
            "no training images."
        )
    strayed = sum(spot is not None and spot.strayed for spot in gallery.source_spots)
    if strayed:
        notes.append(
            f"{strayed} of {len(sources)} prototypes no longer equal the patch they were projected "
            "on: the network or the images have changed since the projection. Project again."
        )
    return notes


def _right(found: Decisions) -> int:
    return int((found.predicted == found.labels).sum())


def _check(model: PrototypeModel, splits: Splits, *, nearest: int, samples: int) -> None:
    if nearest < 1 or samples < 0:
        raise ValueError(f"nearest must be at least 1 and samples 0, got {nearest} and {samples}")
    for name, image_set in (("training", splits.project), ("test", splits.test)):
        if len(image_set) == 0:
            raise DataError(f"there are no {name} images, so there is nothing to explain")
        if image_set.channels != model.num_channels:
            raise DataError(
                f"the {name} images have {image_set.channels} channel(s), the model takes "
                f"{model.num_channels}; open the data with channels={model.num_channels}"
            )
        if len(image_set.classes) != model.num_classes:
            raise DataError(
                f"the {name} images have {len(image_set.classes)} classes, the model knows "
                f"{model.num_classes}; open the data that it was trained on"
            )


def _silent(what: str, done: int, total: int) -> None:
    """Nobody wants to know."""


def _version() -> str:
    try:
        return version("protofast")
    except PackageNotFoundError:
        return "not installed"
