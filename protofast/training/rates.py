"""Settings of the optimisers: learning rates of each stage and part, their decay, weight decay."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from protofast.training.setting_types import Count, Frozen, Rate, wrong


class LearningRates(Frozen):
    """Adam's learning rate of each part of the network; 0 freezes the part.

    Each stage has defaults of its own, so a rate that is left out is the paper's.
    """

    backbone: Rate = 0.0
    add_on: Rate = 0.0
    prototypes: Rate = 0.0
    last_layer: Rate = 0.0

    @model_validator(mode="after")
    def _something_learns(self) -> LearningRates:
        if not (self.backbone or self.add_on or self.prototypes or self.last_layer):
            raise wrong("", "at least one part must have a learning rate above 0")
        return self


class WarmRates(LearningRates):
    """Learning rates of the warm stage."""

    add_on: Rate = 3e-3
    prototypes: Rate = 3e-3


class JointRates(LearningRates):
    """Learning rates of the joint stage."""

    backbone: Rate = 1e-4
    add_on: Rate = 3e-3
    prototypes: Rate = 3e-3


class LastLayerRates(LearningRates):
    """Learning rates of the last-layer stage."""

    last_layer: Rate = 1e-4


class WeightDecay(Frozen):
    """Adam's weight decay (the L2 term in the gradient) of each part of the network."""

    backbone: Rate = 1e-3
    add_on: Rate = 1e-3
    prototypes: Rate = 0.0
    last_layer: Rate = 0.0


class OptimizerSettings(Frozen):
    """One Adam per stage; each keeps its moments from cycle to cycle, as in the original.

    Attributes:
        warm: Rates of the warm stage; under ``warm_head = "linear"`` the backbone's alone counts.
        joint: Rates of the joint stage at their highest; they decay.
        last_layer: Rates of the last-layer stage; constant.
        weight_decay: For all three.
        warm_decay: ``none`` (paper), or ``one_cycle``: up from zero over the first fifth of the
            warm stage, then down to zero along a cosine, batch by batch.
        joint_decay: ``steps`` (paper), ``cosine`` (to zero at the end of the last joint epoch,
            batch by batch), or ``none``.
        decay_epochs: ``steps``: joint epochs between two steps.
        decay_factor: ``steps``: what the rates are multiplied by at each.
    """

    warm: WarmRates = WarmRates()
    joint: JointRates = JointRates()
    last_layer: LastLayerRates = LastLayerRates()
    weight_decay: WeightDecay = WeightDecay()
    warm_decay: Literal["none", "one_cycle"] = "none"
    joint_decay: Literal["steps", "cosine", "none"] = "steps"
    decay_epochs: Count = 5
    decay_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
