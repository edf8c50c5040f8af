"""The training loop: read it from top to bottom.

:meth:`Loop.run` walks through the plan; ``_train_epoch`` holds the training step; ``_project``
projects; after each step of the plan ``_conclude`` tests, writes the numbers down and saves a
checkpoint. A checkpoint can also fall between two batches. What the loop does depends on the
settings, on the place (step, batch) and on the state in the checkpoint, and on nothing else; hence
a resumed run is bit-equal.
"""

from __future__ import annotations

import gc
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, distributed, nn

from protofast.data import Batch, Splits
from protofast.errors import ProtofastError, SettingsError
from protofast.losses import classification_loss, cluster_loss, last_layer_l1, separation_loss
from protofast.models.protocol import Output
from protofast.projection import project_prototypes
from protofast.training import health
from protofast.training.activations import Activations, IndexBatch, compute_activations, output_of
from protofast.training.feed import Feed
from protofast.training.health import HealthWarning
from protofast.training.journal import PARTIAL, Journal
from protofast.training.optimizers import LearningStage, let_learn, set_rates
from protofast.training.progress import summary
from protofast.training.prototypes_table import prototype_rows
from protofast.training.schedule import PlanStep, joint_factor, plan
from protofast.training.settings import Settings
from protofast.training.state import EpochSums, State, means
from protofast.training.testing import run_test

Perturb = Callable[[nn.Module, Tensor, Tensor], Tensor | None]
Forward = Callable[[Any], Output]


class Stopped(Exception):  # noqa: N818 - not an error
    """The run was asked to stop."""


class Loop:
    """A run in progress.

    Args:
        fabric: Device, precision, ranks.
        settings: What to do.
        data: With which images.
        state: Model, optimisers and place; changed in place.
        journal: Where numbers and checkpoints go.
        stop: When set, the loop saves a checkpoint and returns.
        perturb: Called as ``perturb(model, images, labels)`` before each training step; what it
            returns (unless None) takes the place of the images. For adversarial training.
    """

    def __init__(
        self,
        fabric: Fabric,
        settings: Settings,
        data: Splits,
        state: State,
        journal: Journal,
        *,
        stop: threading.Event,
        perturb: Perturb | None = None,
    ) -> None:
        self.fabric = fabric
        self.settings = settings
        self.data = data
        self.state = state
        self.journal = journal
        self.progress = journal.progress
        self.stop = stop
        self.perturb = perturb
        self.plan = plan(settings.training.schedule)
        self.feed = Feed(settings, data, fabric)
        self.class_weights = _class_weights(settings, data, fabric.device)
        # Fabric's wrappers share the optimisers' state; the state belongs to the bare ones.
        self.optimizers = {
            stage: cast(_FabricOptimizer, fabric.setup_optimizers(optimizer))
            for stage, optimizer in state.optimizers.items()
        }
        self._network: nn.Module | None = None
        self._stage_of_network: str | None = None
        self._known: tuple[int, Activations] | None = None  # cycle, activations
        self._saved_at = time.monotonic()

    def run(self) -> bool:
        """Goes on from where the state is; whether the plan is done (else it was asked to stop)."""
        self.progress.begin(
            total=sum(self._work(step) for step in self.plan),
            done=sum(self._work(step) for step in self.plan[: self.state.step]),
        )
        try:
            for step in self.plan[self.state.step :]:
                if step.stage == "project":
                    row = self._project(step)
                else:
                    row = self._train_epoch(step, step.stage)
                self._conclude(step, row)
        except Stopped:
            # A projection starts again; its network is still that of the last checkpoint.
            here = self.plan[self.state.step]
            if here.stage != "project":
                self._save(here.name + PARTIAL)
            return False
        return True

    def _train_epoch(self, step: PlanStep, stage: LearningStage) -> dict[str, Any]:
        """One epoch of a stage, from batch ``state.batch`` on."""
        state, total = self.state, self.feed.batches_in(step)
        forward = self._enter(step, stage)
        optimizer = self.optimizers[stage]
        self.progress.start(
            step.name,
            total=len(self.data.train) * self.feed.passes(step),
            done=state.batch * self.settings.training.batch_size,
        )
        clock = time.monotonic()
        for batch in self._batches(step):
            set_rates(state.optimizers[stage], self._factor(step, state.batch / total))
            output = forward(batch)
            loss, terms = self._loss(output, batch.labels)
            optimizer.zero_grad()
            self.fabric.backward(loss)
            optimizer.step()
            state.batch += 1
            self._count(output, batch.labels, [loss, *terms])
            now = time.monotonic()
            state.sums.seconds += now - clock
            self._between_batches(step, total)
            clock = time.monotonic()
        values, wins = state.sums.over_ranks(self.fabric)
        row: dict[str, Any] = means(values) | {
            "images": int(values[0]),
            "seconds": state.sums.seconds,
            "images_per_second": float(values[0]) / max(state.sums.seconds, 1e-9),
            "learning_rates": self._rates(stage, step),
            "never_winning": int((wins == 0).sum()),
        }
        if not math.isfinite(row["loss"]):
            raise ProtofastError(
                f"training diverged: the loss of {step.name} is {row['loss']}; lower the learning "
                "rates (training.optimizer); the last checkpoint is from before this epoch"
            )
        self._share_buffers()
        if step.last:
            self.journal.warn(step, self._health(step, wins))
        return row

    def _loss(self, output: Output, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The total and its terms, in the order of ``state.TERMS``."""
        weights, model = self.settings.training.losses, self.state.model
        cross_entropy = classification_loss(output.logits, labels, self.class_weights)
        cluster = cluster_loss(output.distances, labels, model.prototype_class)
        separation = separation_loss(output.distances, labels, model.prototype_class)
        l1 = last_layer_l1(model.last_layer.weight, model.prototype_class)
        loss = (
            weights.cross_entropy * cross_entropy
            + weights.cluster * cluster
            - weights.separation * separation
            + weights.l1 * l1
        )
        return loss, [cross_entropy, cluster, separation, l1]

    def _project(self, step: PlanStep) -> dict[str, Any]:
        """Every prototype becomes the nearest patch of an image of its class."""
        started = time.monotonic()
        images = self.data.project
        self.progress.start(step.name, total=len(images))
        done = 0

        def tick(so_far: int) -> None:
            nonlocal done
            self._tick(so_far - done)
            done = so_far

        with warnings.catch_warnings():
            # A class without images is told by the row and the journal below.
            warnings.simplefilter("ignore", UserWarning)
            projection = project_prototypes(self.state.model, self.feed.projecting(), progress=tick)
        self.state.prototypes = prototype_rows(self.state.model, projection, images)
        found = []
        if projection.empty_classes:
            names = ", ".join(images.classes[label] for label in projection.empty_classes)
            found.append(HealthWarning("empty_classes", f"no image to project on: class {names}"))
        groups = health.duplicates(projection.images, projection.locations)
        total = self.state.model.num_prototypes
        if groups:
            kind = "show the same place of the same image as another"
            found.append(health.warn_of_groups("duplicates", kind, groups, total))
        self.journal.warn(step, found)
        seconds = time.monotonic() - started
        known = ~projection.distances.isnan()
        return {
            "distance_mean": float(projection.distances[known].mean()),
            "moved_mean": float(projection.moved.mean()),
            "moved_max": float(projection.moved.max()),
            "duplicates": sum(len(group) - 1 for group in groups),
            "empty_classes": list(projection.empty_classes),
            "images": len(images),
            "seconds": seconds,
            "images_per_second": len(images) / max(seconds, 1e-9),
        }

    def _conclude(self, step: PlanStep, row: dict[str, Any]) -> None:
        """After a step: test, write down, save."""
        self.journal.row("projection" if step.stage == "project" else "epoch", step, row)
        tested = None
        best = self.state.best
        if self._is_tested(step):
            tested = run_test(
                self.fabric,
                self.state.model,
                self.feed.testing(),
                # Once a projection has moved the prototypes, it is too late to start it again.
                tick=self.progress.advance if step.stage == "project" else self._tick,
            )
            self.journal.row("test", step, tested | {"projected": step.projected})
            score = tested[self.settings.training.best_by]
            # Only a projected network's prototypes are patches: it is better than any other.
            rank = [step.projected, score]
            if best is None or rank > best["rank"]:
                best = {"name": step.name, "rank": rank, "test": tested}
        if step.stage == "project" and self.journal.writes:
            self.journal.folder.write_prototypes(self.state.prototypes)
        self.state.best = best
        self.state.step += 1
        self.state.batch = 0
        self.state.sums = EpochSums(self.state.model.num_prototypes, self.fabric.device)
        self._save(step.name)
        self.journal.finish(summary(step.name, row, tested))

    def _save(self, name: str) -> None:
        """A checkpoint of this moment; all ranks take part."""
        tensors, facts = self.state.capture(self.fabric)
        facts["classes"] = list(self.data.train.classes)
        facts["steps"] = len(self.plan)
        best = self.state.best
        self.journal.save(name, tensors, facts, best=None if best is None else best["name"])
        self._saved_at = time.monotonic()

    # ----- what a step sees -----

    def _enter(self, step: PlanStep, stage: LearningStage) -> Forward:
        """Lets the right parts learn, in the right mode; how a batch becomes an output."""
        training = self.settings.training
        model = self.state.model
        let_learn(model, getattr(training.optimizer, stage))
        still = stage == "last_layer" and training.freeze_batch_norm_after_projection
        # In eval mode the last-layer stage sees exactly the features that were projected.
        model.train(not still)
        if stage == "last_layer" and training.last_layer_images == "plain":
            if self._known is None or self._known[0] != step.cycle:
                self._known = (
                    step.cycle,
                    compute_activations(model, self.feed.whole_training_set(), self._check_stop),
                )
            known, last_layer = self._known[1], self._wrapped(stage, model.last_layer)
            return lambda batch: output_of(known, last_layer, batch.index)
        network = self._wrapped(stage, model)

        def forward(batch: Batch) -> Output:
            images = batch.images
            if self.perturb is not None:
                altered = self.perturb(model, images, batch.labels)
                images = images if altered is None else altered
            output: Output = network(images)
            return output

        return forward

    def _wrapped(self, stage: str, module: nn.Module) -> nn.Module:
        """The module as Fabric runs it, made anew per stage: several ranks fix what learns."""
        if self._network is None or self._stage_of_network != stage:
            self._network = None
            if self.fabric.world_size > 1:
                gc.collect()  # the old wrapper's hooks on the gradients must be gone
            self._network = self.fabric.setup_module(module)
            self._stage_of_network = stage
        return self._network

    def _batches(self, step: PlanStep) -> Iterator[Batch] | Iterator[IndexBatch]:
        if step.stage == "last_layer" and self.settings.training.last_layer_images == "plain":
            return self.feed.training_index(step, self.state.batch)
        return self.feed.training(step, self.state.batch)

    def _factor(self, step: PlanStep, part: float) -> float:
        training = self.settings.training
        if step.stage != "joint":
            return 1.0
        return joint_factor(
            step.index, part, optimizer=training.optimizer, schedule=training.schedule
        )

    def _rates(self, stage: LearningStage, step: PlanStep) -> dict[str, float]:
        """Learning rates at the start of the epoch."""
        rates = getattr(self.settings.training.optimizer, stage)
        factor = self._factor(step, 0.0)
        return {name: rate * factor for name, rate in rates.model_dump().items() if rate}

    # ----- between batches -----

    def _count(self, output: Output, labels: Tensor, terms: list[Tensor]) -> None:
        sums = self.state.sums
        with torch.no_grad():
            right = (output.logits.argmax(1) == labels).sum()
            wins = health.own_class_winners(
                output.distances, labels, self.state.model.prototype_class
            )
            sums.add(right, terms, wins, len(labels))
        if self.progress.wants_numbers():
            so_far = sums.means()
            self.progress.advance(len(labels), loss=so_far["loss"], accuracy=so_far["accuracy"])
        else:
            self.progress.advance(len(labels))

    def _between_batches(self, step: PlanStep, total: int) -> None:
        """Stops if asked to, and saves a checkpoint if the last one is old; all ranks alike."""
        age = time.monotonic() - self._saved_at
        stop, due = self.stop.is_set(), age >= self.settings.training.checkpoint_seconds
        if self.fabric.world_size > 1:
            wishes = torch.tensor([stop, due and self.fabric.is_global_zero])
            both = self.fabric.all_reduce(wishes.float().to(self.fabric.device), reduce_op="sum")
            assert isinstance(both, Tensor)
            stop, due = (value > 0 for value in both.tolist())
        if stop:
            raise Stopped
        if due and self.state.batch < total:
            self._save(step.name + PARTIAL)

    def _tick(self, images: int) -> None:
        """More images are done outside a training step."""
        self.progress.advance(images)
        self._check_stop(images)

    def _check_stop(self, _images: int) -> None:
        # With several ranks only _between_batches stops, where they agree on it.
        if self.fabric.world_size == 1 and self.stop.is_set():
            raise Stopped

    def _share_buffers(self) -> None:
        """All ranks take the first one's batch-norm statistics, as at each training step."""
        if self.fabric.world_size > 1:
            for buffer in self.state.model.buffers():
                distributed.broadcast(buffer, 0)

    def _health(self, step: PlanStep, wins: Tensor) -> list[HealthWarning]:
        """At the end of a stage."""
        model = self.state.model
        found = []
        idle = (wins == 0).nonzero()[:, 0].tolist()
        if idle:
            kind = "were never the nearest of their class in this epoch"
            found.append(
                health.warn_of_prototypes("never_winning", kind, idle, model.num_prototypes)
            )
        if step.stage == "last_layer":
            return found
        groups = health.collapsed(model.prototypes)
        if groups:
            kind = "are nearly the same vector as another"
            found.append(health.warn_of_groups("collapsed", kind, groups, model.num_prototypes))
        return found + self._feature_health()

    def _feature_health(self) -> list[HealthWarning]:
        model = self.state.model
        images = next(iter(self.feed.projecting())).images
        model.eval()
        with torch.no_grad():
            features = model.features(images)
        channels = health.constant_channels(features)
        if 2 * len(channels) <= features.shape[1]:
            return []
        return [
            HealthWarning(
                "constant_channels",
                f"{len(channels)} of {features.shape[1]} channels of the features are the same "
                "everywhere; the learning rates may be too high",
            )
        ]

    def _is_tested(self, step: PlanStep) -> bool:
        if step.stage == "project" or step.last:
            return True
        number = step.index if step.stage == "last_layer" else step.epoch
        return (number + 1) % self.settings.training.test_every == 0

    def _work(self, step: PlanStep) -> int:
        """Images that a step looks at, for the progress bar."""
        tested = len(self.data.test) if self._is_tested(step) else 0
        if step.stage == "project":
            return len(self.data.project) + tested
        return len(self.data.train) * self.feed.passes(step) + tested


def _class_weights(settings: Settings, data: Splits, device: torch.device) -> Tensor | None:
    """[C] weights of the cross entropy, or None."""
    wanted = settings.training.losses.class_weights
    classes = len(data.train.classes)
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
