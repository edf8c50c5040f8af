"""The training loop: read it from top to bottom.

:meth:`Loop.run` walks through the plan; ``_train_epoch`` holds the training step; ``_project``
projects; after each step of the plan ``_conclude`` tests, writes the numbers down and saves a
checkpoint. A checkpoint can also fall between two batches. What the loop does depends on the
settings, on the place (step, batch) and on the state in the checkpoint, and on nothing else; hence
a resumed run is bit-equal.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, distributed

from protofast.data import Splits
from protofast.errors import ProtofastError
from protofast.files import finite
from protofast.models.protocol import Output
from protofast.projection import project_prototypes
from protofast.training import health
from protofast.training.batch_norm import check_single_images
from protofast.training.build import build_class_weights
from protofast.training.feed import Feed
from protofast.training.images import checksums
from protofast.training.journal import PARTIAL, Journal
from protofast.training.objective import training_loss
from protofast.training.optimizers import LearningStage, learnable, set_rates
from protofast.training.perturb import Perturb
from protofast.training.progress import summary
from protofast.training.prototypes_table import prototype_rows
from protofast.training.schedule import PlanStep, is_tested, plan
from protofast.training.settings import Settings
from protofast.training.stages import Stages
from protofast.training.state import EpochSums, State, means
from protofast.training.testing import run_test
from protofast.training.workload import Workload


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
        perturb: Called before each training step; what it returns (unless None) takes the place of
            the images. For adversarial training. See :class:`protofast.training.perturb.Perturb`.
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
        self.plan = plan(settings.training.schedule)
        self.feed = Feed(settings, data, fabric, mean=state.model.mean, std=state.model.std)
        smallest, alignment = self.feed.smallest_batch, settings.training.alignment
        if alignment.weight:  # its second pass sees a part of each batch
            smallest = alignment.compared(smallest)
        check_single_images(state.model, data.train, smallest)
        self.class_weights = build_class_weights(settings.training.losses, data, fabric.device)
        # Fabric's wrappers share the optimisers' state; the state belongs to the bare ones.
        self.optimizers = {
            stage: cast(_FabricOptimizer, fabric.setup_optimizers(optimizer))
            for stage, optimizer in state.optimizers.items()
        }
        self.stages = Stages(
            fabric,
            settings,
            self.feed,
            state,
            perturb=perturb,
            begin=lambda name, images: self.progress.start(name, total=images),
            tick=self._tick_whole,
        )
        self.work = Workload(settings, self.feed, self.stages, fabric.world_size)
        self._images = checksums(data)
        self._saved_at = time.monotonic()
        self._begin_changed_epoch_again()

    def _begin_changed_epoch_again(self) -> None:
        """An epoch that has another number of batches now cannot be gone on with in its middle."""
        state = self.state
        if state.batch and state.batches != self.feed.batches_in(self.plan[state.step]):
            self.journal.say(f"{self.plan[state.step].name} has other batches now: it starts again")
            state.batch = 0
            state.sums = EpochSums(state.model.num_prototypes, self.fabric.device)

    def run(self) -> bool:
        """Goes on from where the state is; whether the plan is done (else it was asked to stop)."""
        self.progress.begin(
            total=sum(self.work.of(step) for step in self.plan),
            done=self.work.done(self.plan, self.state.step, self.state.batch),
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
                self._save_within(here)
            return False
        return True

    def _train_epoch(self, step: PlanStep, stage: LearningStage) -> dict[str, Any]:
        """One epoch of a stage, from batch ``state.batch`` on."""
        state, total = self.state, self.feed.batches_in(step)
        forward = self.stages.enter(step, stage)
        if stage != "last_layer":
            state.prototypes = []  # from here on they move away from their patches
        optimizer = self.optimizers[stage]
        self.progress.start(
            step.name,
            total=self.work.of_epoch(step),
            done=self.work.learnt(state.batch),
            counts=not self.stages.is_plain(step),
        )
        clock = time.monotonic()
        for batch in self.stages.batches(step):
            set_rates(state.optimizers[stage], self.stages.factor(step, state.batch / total))
            passed = forward(batch)
            loss, terms = training_loss(
                passed,
                batch.labels,
                state.model,
                settings=self.settings.training,
                class_weights=self.class_weights,
            )
            optimizer.zero_grad()
            self.fabric.backward(loss)
            optimizer.step()
            state.batch += 1
            self._count(passed.output, batch.labels, [loss, *terms])
            now = time.monotonic()
            state.sums.seconds += now - clock
            self._between_batches(step, total)
            clock = time.monotonic()
        return self._epoch_row(step, stage)

    def _epoch_row(self, step: PlanStep, stage: LearningStage) -> dict[str, Any]:
        """What a finished epoch comes to, over all ranks."""
        state = self.state
        values, wins = state.sums.over_ranks(self.fabric)
        row: dict[str, Any] = means(values) | {
            "images": int(values[0]),
            "seconds": state.sums.seconds,
            "images_per_second": float(values[0]) / max(state.sums.seconds, 1e-9),
            "learning_rates": self._rates(step, stage),
            "never_winning": int((wins == 0).sum()),
        }
        if self.stages.is_linear(step):
            for unknown in ("cluster", "separation", "l1", "never_winning"):
                del row[unknown]
        if not self.stages.is_aligned(step):
            del row["alignment"]
        self._check_finite(step, values)
        self._share_buffers()
        if step.last and not self.stages.is_linear(step):
            looked_at = step.stage != "last_layer"  # which changes neither features nor prototypes
            images = next(iter(self.feed.projecting())).images if looked_at else None
            self.journal.warn(step, health.after_stage(state.model, wins, images))
        return row

    def _check_finite(self, step: PlanStep, values: Tensor) -> None:
        """Refuses to go on with, or to save, a network that is lost.

        Args:
            step: Under way.
            values: See ``EpochSums``, over all ranks.

        Raises:
            ProtofastError: Loss or weights are not finite.
        """
        state = self.state
        loss = means(values)["loss"]
        what = f"the loss of {step.name} is {loss}"
        if math.isfinite(loss):
            weights = learnable(state.model, state.head).values()
            if all(bool(weight.isfinite().all()) for weight in weights):
                return
            what = f"{step.name} left weights that are not finite"
        before = self.journal.folder.pointer("latest")
        raise ProtofastError(
            f"training diverged: {what}; lower the learning rates (training.optimizer); the last "
            f"checkpoint from before this is {before or 'missing: there is none yet'}"
        )

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
        self.state.prototypes = finite(prototype_rows(self.state.model, projection, images))
        found = []
        if projection.empty_classes:
            names = ", ".join(images.classes[label] for label in projection.empty_classes)
            found.append(
                health.HealthWarning("empty_classes", f"no image to project on: class {names}")
            )
        groups = health.duplicates(projection.images, projection.locations)
        found += health.duplicate_prototypes(groups, self.state.model.num_prototypes)
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
        if is_tested(step, self.settings.training):
            tested = self._test(step)
            projected = bool(self.state.prototypes)
            if self.stages.is_linear(step):
                # The layer that was tested is dropped: this says nothing of the network itself.
                self.journal.row("test", step, tested | {"projected": False, "head": "linear"})
            else:
                self.journal.row("test", step, tested | {"projected": projected})
                # Only a projected network's prototypes are patches: it is better than any other.
                rank = [projected, tested[self.settings.training.best_by]]
                if best is None or rank > best["rank"]:
                    best = {"name": step.name, "rank": rank, "test": tested}
        if self.journal.writes:
            self.journal.folder.write_prototypes(self.state.prototypes)
        self.state.best = best
        self.state.step += 1
        self.state.batch = 0
        self.state.sums = EpochSums(self.state.model.num_prototypes, self.fabric.device)
        self._save(step.name)
        self.journal.finish(summary(step.name, row, tested))

    def _test(self, step: PlanStep) -> dict[str, Any]:
        """The numbers on the test images; None in place of those that are not finite."""
        self.progress.start("test", total=len(self.data.test))
        tested: dict[str, Any] = finite(
            run_test(
                self.fabric,
                self.stages.module(step),
                self.feed.testing(),
                classes=self.state.model.num_classes,
                # Once a projection has moved the prototypes, it is too late to start it again.
                tick=self._advance if step.stage == "project" else self._tick,
            )
        )
        return tested

    def _save_within(self, step: PlanStep) -> None:
        """A checkpoint in the middle of a step, if what it would hold is worth keeping."""
        self._check_finite(step, self.state.sums.over_ranks(self.fabric)[0])
        self._save(step.name + PARTIAL)

    def _save(self, name: str) -> None:
        """A checkpoint of this moment; all ranks take part."""
        tensors, facts = self.state.capture(self.fabric)
        facts["place"] |= self._place()
        facts["classes"] = list(self.data.train.classes)
        facts["images"] = self._images
        best = self.state.best
        self.journal.save(name, tensors, facts, best=None if best is None else best["name"])
        self._saved_at = time.monotonic()

    def _place(self) -> dict[str, Any]:
        """Where the run stands, for a plan that may be another when it is resumed.

        See :func:`protofast.training.schedule.find_place`.
        """
        done = self.state.step
        if self.state.batch:
            here = self.plan[done]
            return {"key": here.key, "batches": self.feed.batches_in(here)}
        return {"key": self.plan[done - 1].key if done else None, "batches": None}

    def _rates(self, step: PlanStep, stage: LearningStage) -> dict[str, float]:
        """Learning rates at the start of the epoch."""
        rates = getattr(self.settings.training.optimizer, stage)
        factor = self.stages.factor(step, 0.0)
        learning = {name: rate * factor for name, rate in rates.model_dump().items() if rate}
        if self.stages.is_linear(step):
            return {"backbone": learning["backbone"]}
        return learning

    # ----- between batches -----

    def _count(self, output: Output, labels: Tensor, terms: list[Tensor]) -> None:
        sums = self.state.sums
        with torch.no_grad():
            right = (output.logits.argmax(1) == labels).sum()
            wins = torch.zeros_like(sums.wins)
            if output.distances.shape[1]:
                wins = health.own_class_winners(
                    output.distances, labels, self.state.model.prototype_class
                )
            sums.add(right, terms, wins, len(labels))
        images = len(labels) * self.fabric.world_size
        if self.progress.wants_numbers():
            so_far = sums.means()
            self.progress.advance(images, loss=so_far["loss"], accuracy=so_far["accuracy"])
        else:
            self.progress.advance(images)

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
            self._save_within(step)

    def _tick(self, images: int) -> None:
        """More of this rank's share are done outside a training step."""
        self._advance(images)
        self._check_stop()

    def _advance(self, images: int) -> None:
        self.progress.advance(images * self.fabric.world_size)

    def _tick_whole(self, images: int) -> None:
        """The same, where every rank does all of them."""
        self.progress.advance(images)
        self._check_stop()

    def _check_stop(self) -> None:
        # With several ranks only _between_batches stops, where they agree on it.
        if self.fabric.world_size == 1 and self.stop.is_set():
            raise Stopped

    def _share_buffers(self) -> None:
        """All ranks take the first one's batch-norm statistics, as at each training step."""
        if self.fabric.world_size > 1:
            for buffer in self.state.model.buffers():
                distributed.broadcast(buffer, 0)
