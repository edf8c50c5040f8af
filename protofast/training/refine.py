"""Projecting and pruning the prototypes of a finished or interrupted run, outside its plan.

Both take a checkpoint of the run, change its prototypes, let the last layer learn anew, and write
the result as a further checkpoint of the same run, which becomes its ``best``. The run's own
``latest`` stays, so an interrupted run can still be resumed where it was.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protofast.data import Batches, ImageSet, Splits
from protofast.errors import SettingsError, command_line
from protofast.losses import classification_loss, last_layer_l1
from protofast.models import ProtoPNet
from protofast.projection import project_prototypes
from protofast.pruning import prune_prototypes
from protofast.training.activations import compute_activations
from protofast.training.build import build_class_weights
from protofast.training.images import check_images, other_images
from protofast.training.prototypes_table import prototype_rows
from protofast.training.run_folder import (
    RunFolder,
    check_classes,
    load_weights,
    model_tensors,
)
from protofast.training.settings import TrainingSettings

Progress = Callable[[str, int, int], None]  # what is done, images done, images in all
Row = dict[str, Any]


@dataclass(frozen=True)
class Refined:
    """What projecting or pruning did.

    Attributes:
        checkpoint: Name of the new checkpoint.
        source: Name of the checkpoint it was made from.
        prototypes: How many there were, and are now.
        accuracy: On the given test images, before and now.
        empty_classes: Names of the classes that pruning left without prototypes.
        other_images: What to say of test images that are others than the run's, which decide
            nothing here; None where they are the same.
    """

    checkpoint: str
    source: str
    prototypes: tuple[int, int]
    accuracy: tuple[float, float]
    empty_classes: tuple[str, ...] = ()
    other_images: str | None = None


def project_run(
    folder: RunFolder,
    data: Splits,
    *,
    checkpoint: str = "latest",
    last_layer_epochs: int = 20,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Refined:
    """Projects a checkpoint's prototypes ("push"), then trains the last layer.

    Args:
        folder: The run.
        data: Its images; other test images are taken, and the result says so.
        checkpoint: ``latest``, ``best`` or a name.
        last_layer_epochs: How long the last layer learns, on un-augmented images.
        device: Where to compute.
        progress: Called after each batch.

    Raises:
        CheckpointError, RunFolderError, DataError: As the message says; the run is left as it was.
    """
    refinement = _Refinement(folder, data, torch.device(device), progress)

    def project(model: ProtoPNet, rows: list[Row]) -> list[Row]:
        projection = project_prototypes(
            model,
            refinement.batches(data.project),
            progress=refinement.tick("projecting", data.project),
        )
        return prototype_rows(model, projection, data.project)

    return refinement.run("projected", checkpoint, project, last_layer_epochs)


def prune_run(
    folder: RunFolder,
    data: Splits,
    *,
    checkpoint: str = "best",
    k: int = 6,
    threshold: int = 3,
    last_layer_epochs: int = 100,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Refined:
    """Prunes a checkpoint's prototypes by ProtoPNet's rule, then trains the last layer.

    Args:
        folder: The run.
        data: Its images; other test images are taken, and the result says so.
        checkpoint: ``latest``, ``best`` or a name; its prototypes must have been projected.
        k: How many nearest training images of each prototype are looked at.
        threshold: How many of them must be of the prototype's class for it to stay.
        last_layer_epochs: How long the last layer learns, on un-augmented images.
        device: Where to compute.
        progress: Called after each batch.

    Raises:
        SettingsError: The prototypes were never projected, or none would be left.
        CheckpointError, RunFolderError, DataError: As the message says; the run is left as it was.
    """
    refinement = _Refinement(folder, data, torch.device(device), progress)

    def prune(model: ProtoPNet, rows: list[Row]) -> list[Row]:
        if not rows:
            raise SettingsError(
                f"the prototypes of this checkpoint were never projected, so there is no telling "
                f"what they show; project them first: {command_line('project', folder.path)}"
            )
        with warnings.catch_warnings():
            # The result names the classes.
            warnings.filterwarnings("ignore", "class .* has lost all its prototypes", UserWarning)
            pruning = prune_prototypes(
                model,
                refinement.batches(data.project),
                k=k,
                threshold=threshold,
                progress=refinement.tick("nearest images", data.project),
            )
        refinement.empty_classes = pruning.empty_classes
        kept = [rows[number] for number in pruning.keep.tolist()]
        return [row | {"prototype": number} for number, row in enumerate(kept)]

    return refinement.run("pruned", checkpoint, prune, last_layer_epochs)


class _Refinement:
    """The steps that projecting and pruning share."""

    def __init__(
        self, folder: RunFolder, data: Splits, device: torch.device, progress: Progress | None
    ) -> None:
        self.folder = folder
        self.data = data
        self.device = device
        self.progress = progress
        self.training: TrainingSettings = folder.settings.training
        self.class_weights = build_class_weights(self.training.losses, data, device)
        self.empty_classes: tuple[int, ...] = ()

    def batches(self, images: ImageSet) -> Batches:
        """The images in their own order, un-augmented."""
        return Batches(
            images,
            self.training.project_batch_size,
            workers=self.training.workers,
            device=self.device,
        )

    def tick(self, what: str, images: ImageSet) -> Callable[[int], None]:
        """A progress callback that is given the number of images done."""
        if self.progress is None:
            return lambda done: None
        progress = self.progress
        return lambda done: progress(what, done, len(images))

    def run(
        self,
        action: str,
        checkpoint: str,
        change: Callable[[ProtoPNet, list[Row]], list[Row]],
        last_layer_epochs: int,
    ) -> Refined:
        """Loads, changes, trains the last layer, tests, and writes the new checkpoint."""
        with self.folder.lock():
            self.folder.sweep()
            source, tensors, facts = self.folder.read(checkpoint)
            check_classes(facts["classes"], self.data.train.classes)
            check_images(facts["images"], **self._deciding())
            model = ProtoPNet.from_config(facts["model"])
            load_weights(model, tensors, source)
            model.to(self.device).eval()
            before = model.num_prototypes
            accuracy_before = self._test(model)
            rows = change(model, facts["prototypes"])
            self._train_last_layer(model, last_layer_epochs)
            refined = Refined(
                self._new_name(f"{action}-{source}"),
                source,
                (before, model.num_prototypes),
                (accuracy_before, self._test(model)),
                tuple(facts["classes"][label] for label in self.empty_classes),
                other_images(facts["images"], test=self.data.test),
            )
            self._write(refined, action, model, rows, facts)
        return refined

    def _deciding(self) -> dict[str, ImageSet]:
        """The sets that the result depends on; the test images only measure it."""
        sets = {"project": self.data.project}
        if self.training.losses.class_weights == "balanced":
            sets["train"] = self.data.train  # its labels are counted
        return sets

    def _new_name(self, name: str) -> str:
        """The name, with a number if there is such a checkpoint already."""
        taken = self.folder.names()
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        return next(each for each in itertools.chain([name], numbered) if each not in taken)

    def _write(
        self, refined: Refined, action: str, model: ProtoPNet, rows: list[Row], facts: Row
    ) -> None:
        """The new checkpoint, which becomes the best, with the table of its prototypes."""
        new_facts = {
            "model": model.config,
            "classes": facts["classes"],
            "images": facts["images"],
            "prototypes": rows,
            "made_from": refined.source,
        }
        self.folder.write(refined.checkpoint, model_tensors(model), new_facts)
        try:
            self.folder.point_to_best(refined.checkpoint, rows)
        except OSError:
            self.folder.remove(refined.checkpoint)  # the disk is full: the run is as it was
            raise
        numbers = {
            "checkpoint": refined.checkpoint,
            "prototypes_before": refined.prototypes[0],
            "prototypes": refined.prototypes[1],
            "accuracy_before": refined.accuracy[0],
            "accuracy": refined.accuracy[1],
        }
        self.folder.append_metrics([{"kind": action, **numbers}])
        self.folder.log(f"{refined.checkpoint}: {numbers}")
        if refined.other_images:
            self.folder.log(refined.other_images)

    def _test(self, model: ProtoPNet) -> float:
        """Accuracy on the test images."""
        found = compute_activations(
            model, self.batches(self.data.test), self._counter("test images", self.data.test)
        )
        logits = model.last_layer(found.activations)
        labels = self.data.test.labels.to(logits.device)
        return float((logits.argmax(1) == labels).double().mean())

    def _train_last_layer(self, model: ProtoPNet, epochs: int) -> None:
        """Adam on the last layer alone; all else stands still, so activations are computed once."""
        if epochs == 0:
            return
        images = self.data.project
        found = compute_activations(
            model, self.batches(images), self._counter("training images", images)
        )
        labels = images.labels.to(self.device)
        weight = model.last_layer.weight
        rate = self.training.optimizer.last_layer.last_layer or 1e-4
        optimizer = torch.optim.Adam([weight], lr=rate)
        generator = torch.Generator().manual_seed(self.training.seed % 2**64)
        model.requires_grad_(False)
        weight.requires_grad_(True)
        for _ in range(epochs):
            order = torch.randperm(len(labels), generator=generator).to(self.device)
            for index in order.split(self.training.batch_size):
                loss = self._loss(model, found.activations[index], labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model.requires_grad_(True)

    def _loss(self, model: ProtoPNet, activations: Tensor, labels: Tensor) -> Tensor:
        """The terms of the loss that the last layer can change."""
        weights = self.training.losses
        logits = model.last_layer(activations)
        cross_entropy = classification_loss(logits, labels, self.class_weights)
        l1 = last_layer_l1(model.last_layer.weight, model.prototype_class)
        return weights.cross_entropy * cross_entropy + weights.l1 * l1

    def _counter(self, what: str, images: ImageSet) -> Callable[[int], None]:
        """A progress callback that is given the number of images of each batch."""
        tick, done = self.tick(what, images), 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            tick(done)

        return count
