"""Settings of the defences against what the audits find; all are off by default.

Adversarial training makes a network harder to fool (Hoffmann et al. 2021, appendix F.1); the
alignment loss and masking make its maps show what it looks at (Sacha et al. 2024, 2308.08162). They
can be combined, with one another and with any recipe.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor

from protofast.data import Masking
from protofast.training.setting_types import (
    Brightness,
    Fraction,
    Frozen,
    Names,
    NotNegative,
    Pair,
    Rate,
    Shares,
    wrong,
)


class AdversarialSettings(Frozen):
    """Fast adversarial training (Wong et al. 2020, as Hoffmann et al. 2021 use it, appendix F.1).

    Every batch, in every stage, is replaced by one that is made to be misclassified: uniform noise
    within ``epsilon``, then one step along the sign of the cross entropy's gradient. The network is
    in eval mode while it is made, and learns from it alone.

    Attributes:
        method: ``fgsm``, or ``none`` to leave the images as they are.
        epsilon: Largest change of a channel of a pixel, as a part of the range from black to
            white; a number, or a ratio as text.
        step_size: Length of the step in the same unit. A little more than ``epsilon``, so that the
            step reaches the border from wherever the noise was; much more of it lets networks learn
            to resist this one step only.
        rise: Warm and joint epochs in which both rise from 0, batch by batch; 0 (paper) begins with
            all of it. A network from scratch learns next to nothing from images that are perturbed
            as much as that before it tells the plain ones apart.
    """

    method: Literal["none", "fgsm"] = "none"
    epsilon: Brightness = 8 / 255
    step_size: Brightness = 10 / 255
    rise: NotNegative = 0


class AlignmentSettings(Frozen):
    """The alignment loss (Sacha et al. 2024): see :func:`protofast.alignment.alignment_step`.

    It is computed where prototypes learn, that is in the joint stage, and in the warm stage unless
    ``warm_head`` is ``linear``; each image is compared in one prototype of its class, drawn anew in
    each epoch.

    Attributes:
        weight: Of the loss's term; 0 computes nothing. ProtoPNet's released code takes 10.
        quantile: Share of each image that is covered, where the map is lowest (paper: 0.9), or
            ``random``: for each batch one drawn from 0.5 to 0.98 (released code).
        difference: ``l2``, squared, or ``l1``, absolute (the released ProtoPNet's default).
        weigh_by_mask: Count cells by how much of them is shown (released code), not all equally.
        detach_target: Let the first pass's maps be a constant target (released code).
        update_statistics: Whether the second pass, on covered images, moves batch norm's running
            statistics too (released code).
        fraction: Share of each batch that is compared, rounded up; less takes less time.
    """

    weight: Rate = 0.0
    quantile: Annotated[float, Field(ge=0, lt=1)] | Literal["random"] = Field(
        default=0.9, description="a number from 0 to below 1, or 'random'"
    )
    difference: Literal["l2", "l1"] = "l2"
    weigh_by_mask: bool = False
    detach_target: bool = True
    update_statistics: bool = True
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0

    def compared(self, images: int) -> int:
        """How many of a batch's images are compared."""
        return max(1, math.ceil(round(images * self.fraction, 9)))  # 7 of 10: 7.000000000000001


class MaskingSettings(Frozen):
    """Rectangles painted over training images; see :class:`protofast.data.Masking`.

    Attributes:
        probability: Of an image to be masked; 0 switches masking off.
        rectangles: Least and largest number of them in an image.
        size: Least and largest height and width of one, as shares of the image's.
        fills: What they may be filled with, each equally likely: ``mean``, ``noise``, ``noisy``.
    """

    probability: Fraction = 0.0
    rectangles: Pair = (1, 5)
    size: Shares = (0.125, 0.5)
    fills: Names = ("mean", "noise", "noisy")

    def build(self, mean: Tensor, std: Tensor) -> Masking:
        """The same, for :class:`protofast.data.Batches`, with a network's mean and deviation."""
        return Masking(
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            **self.model_dump(),
        )

    @model_validator(mode="after")
    def _allowed(self) -> MaskingSettings:
        try:
            Masking(mean=(0.5,), std=(0.25,), **self.model_dump())
        except ValueError as error:
            raise wrong(str(error).split()[0], str(error)) from error
        return self
