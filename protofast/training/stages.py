"""What a stage of the plan computes, lets learn and sees."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any, cast

from lightning_fabric import Fabric
from torch import nn

from protofast.data import Batch
from protofast.training.activations import Activations, IndexBatch, compute_activations, output_of
from protofast.training.aligned_pass import AlignedPass, Passed
from protofast.training.feed import Feed
from protofast.training.optimizers import LearningStage, let_learn
from protofast.training.perturb import Perturb, perturbed
from protofast.training.pooled import PooledClassifier
from protofast.training.prototype_init import images_to_start_from, start_from_patches
from protofast.training.rates import LearningRates
from protofast.training.schedule import (
    PlanStep,
    joint_factor,
    perturbation_strength,
    warm_factor,
)
from protofast.training.settings import Settings
from protofast.training.state import State

Forward = Callable[[Any], Passed]


class Stages:
    """Turns the network from stage to stage; see :class:`protofast.training.loop.Loop`.

    Args:
        fabric: Device, precision, ranks.
        settings: What to do.
        feed: The images.
        state: Model, head and place.
        perturb: Alters training images, or None.
        begin: Called with a name and a number of images before they are looked at without learning.
        tick: Called with the number of images of each batch of them.
    """

    def __init__(
        self,
        fabric: Fabric,
        settings: Settings,
        feed: Feed,
        state: State,
        *,
        perturb: Perturb | None,
        begin: Callable[[str, int], None],
        tick: Callable[[int], None],
    ) -> None:
        self._fabric = fabric
        self._settings = settings
        self._feed = feed
        self._state = state
        self._perturb = perturb
        self._begin = begin
        self._tick = tick
        self._network: nn.Module | None = None
        self._stage_of_network: str | None = None
        self._known: tuple[int, Activations] | None = None  # cycle, activations
        self._aligned: AlignedPass | None = None
        training = settings.training
        if training.alignment.weight:
            self._aligned = AlignedPass(state.model, training.alignment, seed=training.seed)

    def is_linear(self, step: PlanStep) -> bool:
        """Whether a linear layer on the backbone learns in place of the prototypes."""
        return step.stage == "warm" and self._state.head is not None

    def module(self, step: PlanStep) -> nn.Module:
        """What turns images into an Output in this step."""
        if step.stage == "warm" and self._state.head is not None:
            return PooledClassifier(self._state.model, self._state.head)
        return self._state.model

    def enter(self, step: PlanStep, stage: LearningStage) -> Forward:
        """Lets the right parts learn, in the right mode.

        Returns:
            What comes of a batch of :meth:`batches`.
        """
        training = self._settings.training
        model = self._state.model
        rates = getattr(training.optimizer, stage)
        if stage == "joint" and step.index == 0 and self._state.batch == 0:
            self._start_prototypes()
        let_learn(model, LearningRates(backbone=rates.backbone) if self.is_linear(step) else rates)
        still = stage == "last_layer" and training.freeze_batch_norm_after_projection
        # In eval mode the last-layer stage sees the features that were projected: exactly those in
        # float32, nearly those under autocast.
        model.train(not still)
        if self.is_plain(step):
            return self._known_images(step, stage)
        module = self.module(step)
        aligned = self._aligned if self.is_aligned(step) else None
        network = self._wrapped(stage, aligned or module)

        def forward(batch: Batch) -> Passed:
            number = self._state.batch
            epoch = self._feed.key(step, number)
            images = batch.images
            if self._perturb is not None:
                done = number / self._feed.batches_in(step)
                rise = self._settings.training.adversarial.rise
                strength = perturbation_strength(step, done, rise=rise)
                images = perturbed(self._perturb, module, batch, epoch=epoch, strength=strength)
            if aligned is None:
                return Passed(network(images))
            chosen = aligned.prototypes(batch, epoch=epoch)
            quantile = aligned.quantile(epoch=epoch, batch=number)
            return cast(Passed, network(images, chosen, quantile))

        return forward

    def batches(self, step: PlanStep) -> Iterator[Batch] | Iterator[IndexBatch]:
        """What is left of the step's training batches."""
        if self.is_plain(step):
            return self._feed.training_index(step, self._state.batch)
        return self._feed.training(step, self._state.batch)

    def factor(self, step: PlanStep, part: float) -> float:
        """What the stage's learning rates are multiplied by when ``part`` of the epoch is done."""
        training = self._settings.training
        if step.stage == "last_layer":
            return 1.0
        factor = warm_factor if step.stage == "warm" else joint_factor
        return factor(step.index, part, optimizer=training.optimizer, schedule=training.schedule)

    def preparation(self, step: PlanStep) -> int:
        """How many images are looked at before the first batch of a step."""
        if self.is_plain(step):
            return len(self._feed.data.train) if step.index == 0 else 0
        patches = self._settings.model.prototype_init == "patches"
        if patches and step.stage == "joint" and step.index == 0:
            return images_to_start_from(self._feed.data.train)
        return 0

    def is_plain(self, step: PlanStep) -> bool:
        """Whether the step learns from activations that are computed once, in next to no time."""
        return step.stage == "last_layer" and self._settings.training.last_layer_images == "plain"

    def is_aligned(self, step: PlanStep) -> bool:
        """Whether the alignment loss is computed: where prototypes learn, if it has a weight."""
        learning = step.stage in ("warm", "joint") and not self.is_linear(step)
        return learning and self._aligned is not None

    def _known_images(self, step: PlanStep, stage: LearningStage) -> Forward:
        """The last-layer stage on activations that are computed once."""
        model = self._state.model
        if self._known is None or self._known[0] != step.cycle:
            whole = self._feed.whole_training_set()
            self._begin("activations", len(self._feed.data.train))
            self._known = step.cycle, compute_activations(model, whole, self._tick)
        known, last_layer = self._known[1], self._wrapped(stage, model.last_layer)
        return lambda batch: Passed(output_of(known, last_layer, batch.index))

    def _start_prototypes(self) -> None:
        """Before the first joint epoch; again if the run is resumed before its first batch."""
        if self._settings.model.prototype_init == "patches":
            self._begin("prototype start", images_to_start_from(self._feed.data.train))
            start_from_patches(
                self._state.model,
                self._feed.data.train,
                head=self._state.head,
                batch_size=self._settings.training.test_batch_size,
                seed=self._settings.training.seed,
                tick=self._tick,
            )

    def _wrapped(self, stage: str, module: nn.Module) -> nn.Module:
        """The module as Fabric runs it, made anew per stage: several ranks fix what learns."""
        if self._network is None or self._stage_of_network != stage:
            self._network = None
            if self._fabric.world_size > 1:
                gc.collect()  # the old wrapper's hooks on the gradients must be gone
            self._network = self._fabric.setup_module(module)
            self._stage_of_network = stage
        return self._network
