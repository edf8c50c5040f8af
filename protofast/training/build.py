"""From settings to data and model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protofast.data import (
    Splits,
    check_leaks,
    compress_splits,
    compressed_classes,
    describe_leaks,
    open_birds,
    open_cars,
    open_cub,
    open_folders,
)
from protofast.data.leaks import KINDS
from protofast.errors import DataError, SettingsError
from protofast.models import ProtoPNet, build_backbone
from protofast.training.checkpoint import is_checkpoint, load_checkpoint
from protofast.training.run_folder import differing_classes, load_weights
from protofast.training.settings import DataSettings, LossSettings, ModelSettings

Progress = Callable[[int, int], None]


def build_data(
    settings: DataSettings, *, progress: Progress | None = None, threads: int | None = None
) -> Splits:
    """Opens (or renders) the images that the settings ask for.

    Args:
        settings: Which.
        progress: Called with (images done, images in all) while images are rendered or decoded.
        threads: Threads that render or decode; None for PyTorch's number.

    Raises:
        DataError: Something about the files is wrong; the message names it.
    """
    workers = torch.get_num_threads() if threads is None else threads
    birds = settings.kind == "birds"
    splits = _birds(settings, progress, workers) if birds else _files(settings)
    jpeg = settings.jpeg
    if jpeg.compressed != "none":
        classes = compressed_classes(len(splits.train.classes), jpeg.compressed, jpeg.seed)
        splits = compress_splits(
            splits, classes, quality=jpeg.quality, codec=jpeg.codec, at=jpeg.at
        )
    if settings.in_memory:
        train = splits.train.cached(threads=workers, progress=progress)
        same = splits.project is splits.train
        project = train if same else splits.project.cached(threads=workers, progress=progress)
        test = splits.test.cached(threads=workers, progress=progress)
        splits = Splits(train, project, test)
    if settings.leaks == "refuse" and not birds:
        _refuse_leaks(splits)
    return splits


def _refuse_leaks(splits: Splits) -> None:
    leaks = check_leaks(splits.train, splits.test, allow=KINDS)
    if leaks:
        raise DataError(
            f"{describe_leaks(leaks)}; remove one of each, or train nevertheless with the setting "
            "data.leaks=allow"
        )


def check_start(settings: ModelSettings) -> None:
    """Makes sure that a network which goes on from another run is told from which.

    Raises:
        SettingsError: It is not.
    """
    if settings.weights == "run":
        raise SettingsError(
            "model.weights = run: these settings go on from the network of another run; say from "
            "which with --from RUN, or start from nothing with --set model.weights=none"
        )


def remark_on_start(settings: ModelSettings) -> str | None:
    """What to say of a start from another run's network that does not keep all of it."""
    weights = Path(os.path.expanduser(settings.weights))
    if settings.prototype_init != "patches" or not is_checkpoint(weights):
        return None
    return (
        f"the prototypes in {weights} give way to patches before the first joint epoch, as "
        "model.prototype_init = patches has it; uniform keeps them"
    )


def build_model(
    settings: ModelSettings,
    data: DataSettings,
    *,
    num_classes: int,
    classes: Sequence[str] | None = None,
) -> ProtoPNet:
    """A fresh network, initialised from PyTorch's random state.

    Args:
        settings: What to build.
        data: Size and channels of its images.
        num_classes: C.
        classes: Their names, which must be those of the run that weights come from; None to take
            any network with C classes.

    Raises:
        SettingsError: An unknown backbone, or weights that cannot be had, or of other classes.
        CheckpointError: The weights are damaged or do not fit.
    """
    check_start(settings)
    weights: str | Path | None = settings.weights
    if settings.weights == "none":
        weights = None
    elif settings.weights != "imagenet":
        weights = Path(os.path.expanduser(settings.weights))
        if is_checkpoint(weights):
            fresh = settings.model_copy(update={"weights": "none"})
            model = build_model(fresh, data, num_classes=num_classes)
            tensors, facts = load_checkpoint(weights)
            _check_same_classes(facts["classes"], classes, weights)
            load_weights(model, tensors, str(weights))
            _check_same_similarity(model, facts["model"], weights)
            return model
    backbone = build_backbone(settings.backbone, num_channels=data.channels, weights=weights)
    try:
        return ProtoPNet(
            backbone,
            num_classes=num_classes,
            prototypes_per_class=settings.prototypes_per_class,
            depth=settings.depth,
            add_on=settings.add_on,
            metric=settings.metric,
            similarity=settings.similarity,
            eps=settings.eps,
            input_size=data.image_size,
            num_channels=data.channels,
        )
    except ValueError as error:
        raise SettingsError(f"model: {error}") from error


def _check_same_classes(there: Sequence[str], here: Sequence[str] | None, weights: Path) -> None:
    """Weights fit any classes that are as many; what the network has learned does not."""
    different = None if here is None else differing_classes(there, here)
    if different:
        raise SettingsError(
            f"the network in {weights} was trained on other classes than the images have: "
            f"{different}; take images of the same classes, or another run (--from, model.weights)"
        )


def _check_same_similarity(model: ProtoPNet, there: Mapping[str, Any], weights: Path) -> None:
    """Weights of one similarity fit another's network, which would then learn from nonsense."""
    for key in ("metric", "similarity", "eps"):
        here = model.config[key]
        if there[key] != here:
            raise SettingsError(
                f"model.{key} is {here}, but the network in {weights} was trained with "
                f"{there[key]}; make them the same, or leave model.weights out"
            )


def build_class_weights(
    settings: LossSettings, data: Splits, device: torch.device
) -> Tensor | None:
    """The weights [C] of the cross entropy, or None for equal ones.

    Raises:
        SettingsError: Not one number per class.
    """
    wanted, classes = settings.class_weights, len(data.train.classes)
    if wanted == "none":
        return None
    if wanted == "balanced":
        counts = torch.bincount(data.train.labels, minlength=classes).clamp(min=1)
        return (len(data.train) / (classes * counts.float())).to(device)
    if len(wanted) != classes:
        raise SettingsError(
            f"training.losses.class_weights has {len(wanted)} numbers for {classes} classes"
        )
    return torch.tensor(wanted, dtype=torch.float32, device=device)


def _birds(settings: DataSettings, progress: Progress | None, threads: int) -> Splits:
    classes = settings.classes
    assert not isinstance(classes, tuple)  # the settings see to it
    return open_birds(
        classes=10 if classes is None else classes,
        train_per_class=settings.train_per_class or 60,
        test_per_class=settings.test_per_class or 20,
        size=settings.image_size,
        seed=settings.render_seed or 0,
        threads=threads,
        progress=progress,
    )


def _files(settings: DataSettings) -> Splits:
    assert settings.root is not None  # the settings see to it
    crop = True if settings.crop is None else settings.crop
    if settings.kind == "cub":
        return open_cub(
            settings.root,
            size=settings.image_size,
            classes=settings.classes,
            crop=crop,
            channels=settings.channels,
        )
    if settings.kind == "cars":
        return open_cars(
            settings.root,
            size=settings.image_size,
            classes=settings.classes,
            crop=crop,
            channels=settings.channels,
        )
    fraction = settings.test_fraction
    return open_folders(
        settings.root,
        settings.test_root,
        size=settings.image_size,
        channels=settings.channels,
        groups=settings.groups,
        allow_shared_groups=settings.leaks == "allow",
        test_fraction=0.2 if fraction is None else fraction,
        seed=settings.split_seed or 0,
    )
