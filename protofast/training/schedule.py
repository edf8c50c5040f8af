"""The order of a run's stages and the learning rates in them, as pure functions of the settings.

Nothing here has a state: a run that is resumed at a step and a batch needs no scheduler to be wound
forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from protofast.errors import SettingsError
from protofast.training.rates import OptimizerSettings
from protofast.training.settings import ScheduleSettings, TrainingSettings

Stage = Literal["warm", "joint", "project", "last_layer"]


@dataclass(frozen=True)
class PlanStep:
    """One epoch of training, or one projection.

    Attributes:
        step: Position in the plan.
        stage: What is done.
        epoch: Warm and joint epochs count from 0; a projection and its last-layer epochs bear the
            number of the epoch they follow.
        cycle: Projections up to and including this step.
        index: Position in its stage: the how-manyth joint epoch of the run, or the how-manyth
            last-layer epoch after this projection, from 0.
        last: Whether the next step belongs to another stage (or there is none).
    """

    step: int
    stage: Stage
    epoch: int
    cycle: int
    index: int
    last: bool

    @property
    def name(self) -> str:
        """Stem of the step's checkpoint: ``joint-7``, ``project-10``, ``last_layer-10-3``."""
        stem = f"{self.stage}-{self.epoch}"
        return f"{stem}-{self.index}" if self.stage == "last_layer" else stem

    @property
    def key(self) -> list[Any]:
        """What the step is, whatever the plan it stands in: stage, epoch, index; JSON values."""
        return [self.stage, self.epoch, self.index]


def projects_after(epoch: int, schedule: ScheduleSettings) -> bool:
    """Whether the prototypes are projected after this epoch (PP/main.py: 10, 20, ...)."""
    if schedule.project_last and epoch == schedule.epochs - 1:
        return True
    every = schedule.project_every
    return every > 0 and epoch >= schedule.project_from and epoch % every == 0


def plan(schedule: ScheduleSettings) -> list[PlanStep]:
    """Every step of a run in order: warm, joint, and after some epochs project and last_layer."""
    steps: list[tuple[Stage, int, int, int]] = []
    cycle = 0
    for epoch in range(schedule.epochs):
        if epoch < schedule.warm_epochs:
            steps.append(("warm", epoch, cycle, epoch))
        else:
            steps.append(("joint", epoch, cycle, epoch - schedule.warm_epochs))
        if projects_after(epoch, schedule):
            cycle += 1
            steps.append(("project", epoch, cycle, 0))
            steps += [("last_layer", epoch, cycle, k) for k in range(schedule.last_layer_epochs)]
    following = [stage for stage, *_ in steps[1:]] + [None]
    return [
        PlanStep(number, stage, epoch, cycle, index, stage != after)
        for number, ((stage, epoch, cycle, index), after) in enumerate(
            zip(steps, following, strict=True)
        )
    ]


def is_tested(step: PlanStep, training: TrainingSettings) -> bool:
    """Whether the network is tested after a step."""
    if step.stage == "project" or step.last:
        return True
    if step.stage == "last_layer" and training.last_layer_images == "plain":
        return False  # these epochs take less time than a test
    number = step.index if step.stage == "last_layer" else step.epoch
    return (number + 1) % training.test_every == 0


def find_place(steps: list[PlanStep], key: list[Any] | None, *, under_way: bool) -> int:
    """Where a run stands in a plan that may differ from the one it was started with.

    Args:
        steps: The plan.
        key: ``PlanStep.key`` of the step under way, or else of the last one done; None before any.
        under_way: Which of the two.

    Returns:
        Position of the step to do next; ``len(steps)`` if all are done. Steps that the plan has
        before that, though the run never did them, are not made up for, and those that it did and
        the plan lacks are not looked for.

    Raises:
        SettingsError: The plan has no such step under way; or it ends before the epoch that is
            done, or has another kind of epoch there.
    """
    if key is None:
        return 0
    stage, epoch, index = key
    same = [step.step for step in steps if step.key == key]
    if under_way and same:
        return same[0]
    learnt = [step for step in steps if step.epoch == epoch and step.stage in ("warm", "joint")]
    fits = bool(learnt) and stage in (learnt[0].stage, "project", "last_layer")
    if under_way or not fits:
        what = f"{stage} epoch {epoch}" if stage in ("warm", "joint") else f"{stage} after {epoch}"
        raise SettingsError(
            f"the new training.schedule has no {what}, where the run stands; change it only from "
            "there on"
        )
    place = _within_epoch(stage, index)
    later = [
        step.step
        for step in steps
        if step.epoch > epoch
        or (step.epoch == epoch and _within_epoch(step.stage, step.index) > place)
    ]
    return later[0] if later else len(steps)


def _within_epoch(stage: str, index: int) -> int:
    """Order of the steps of an epoch."""
    return {"project": 1, "last_layer": 2 + index}.get(stage, 0)


_RISE = 0.2  # share of the warm stage in which one_cycle rises


def warm_factor(
    epoch: int, part: float, *, optimizer: OptimizerSettings, schedule: ScheduleSettings
) -> float:
    """What the warm stage's learning rates are multiplied by.

    Args:
        epoch: Number of the epoch.
        part: How much of this epoch is done, in [0, 1).
        optimizer: Kind of decay.
        schedule: Number of warm epochs.
    """
    if optimizer.warm_decay == "none":
        return 1.0
    done = (epoch + part) / schedule.warm_epochs
    if done < _RISE:
        return done / _RISE
    return 0.5 * (1 + math.cos(math.pi * (done - _RISE) / (1 - _RISE)))


def joint_factor(
    joint_epoch: int,
    part: float,
    *,
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings,
) -> float:
    """What the joint stage's learning rates are multiplied by.

    ``steps`` is the original's ``StepLR(step_size=5, gamma=0.1)``. It calls ``scheduler.step()``
    *before* each joint epoch, so the first joint epoch already counts as one: the rates are at
    their base for 4 epochs only (5 to 8 with 5 warm ones), then a tenth of it for 5, a hundredth
    for 5, and so on.

    Args:
        joint_epoch: Joint epochs before this one, in the whole run.
        part: How much of this epoch is done, in [0, 1); only ``cosine`` looks at it.
        optimizer: Kind of decay.
        schedule: Number of joint epochs.
    """
    if optimizer.joint_decay == "steps":
        steps = (joint_epoch + 1) // optimizer.decay_epochs
        return optimizer.decay_factor**steps
    if optimizer.joint_decay == "cosine":
        done = (joint_epoch + part) / (schedule.epochs - schedule.warm_epochs)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return 1.0


def perturbation_strength(step: PlanStep, part: float, *, rise: int) -> float:
    """How much of the full perturbation is due, in [0, 1].

    Args:
        step: Under way.
        part: How much of this epoch is done, in [0, 1).
        rise: Warm and joint epochs in which it rises.
    """
    if step.stage == "last_layer" or step.epoch >= rise:
        return 1.0
    return (step.epoch + part) / rise
