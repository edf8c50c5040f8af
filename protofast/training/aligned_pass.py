"""The alignment loss in a training step: one forward pass that makes both of its passes.

The network and the comparison with covered images are one module, so that Fabric's wrapper sees a
single forward pass: ranks reduce the gradients of both passes together, and mixed precision covers
both. The first pass is the network's own; its features are used, not computed again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from protofast.alignment import ViewMemory, alignment_step
from protofast.data import Batch
from protofast.data.randomness import uniform
from protofast.errors import SettingsError
from protofast.models import ProtoPNet
from protofast.models.protocol import Output
from protofast.training.defences import AlignmentSettings

_PROTOTYPE, _QUANTILE = 22, 23  # purposes of these random numbers; see protofast.data.randomness
_RANDOM_QUANTILE = (0.5, 0.98)  # the released code's


class Passed(NamedTuple):
    """What comes of a batch: the network's Output, and the alignment loss where it is computed."""

    output: Output
    alignment: Tensor | None = None


class AlignedPass(nn.Module):
    """A network's forward pass and its alignment loss; shares the network's weights.

    Args:
        model: The network.
        settings: How to compare.
        seed: Key of the random choices.

    Raises:
        SettingsError: A class has no prototype to compare in.
    """

    def __init__(self, model: ProtoPNet, settings: AlignmentSettings, *, seed: int) -> None:
        super().__init__()
        self.model = model
        self._settings = settings
        self._seed = seed
        self._memory = ViewMemory()
        of_class = model.prototype_class.detach().cpu()
        counts = torch.bincount(of_class, minlength=model.num_classes)  # [C]
        if bool((counts == 0).any()):
            raise SettingsError(
                f"training.alignment compares each image in a prototype of its own class, and "
                f"class {int((counts == 0).nonzero()[0])} has none; set training.alignment.weight "
                "to 0"
            )
        device = model.prototype_class.device
        self._ordered = of_class.argsort(stable=True).to(device)  # prototypes, class by class
        self._counts = counts.to(device)
        self._starts = (counts.cumsum(0) - counts).to(device)

    def forward(self, images: Tensor, index: Tensor, quantile: float) -> Passed:
        """Output and alignment loss.

        Args:
            images: [N, channels, S, T].
            index: int64 [n, 1], the prototype that each of the first n images is compared in.
            quantile: Share of these images that is covered.
        """
        features = self.model.features(images)
        compared = len(index)
        aligned = alignment_step(
            self.model,
            images[:compared],
            index,
            features=features[:compared],
            quantile=quantile,
            difference=self._settings.difference,
            weigh_by_mask=self._settings.weigh_by_mask,
            detach_target=self._settings.detach_target,
            update_statistics=self._settings.update_statistics,
            memory=self._memory,
        )
        return Passed(self.model.classify(features), aligned.loss)

    def prototypes(self, batch: Batch, *, epoch: int) -> Tensor:
        """The own-class prototype drawn for each image that is compared: int64 [n, 1].

        Keyed by (seed, epoch, image); a batch is in random order, so its first images will do.
        """
        compared = self._settings.compared(len(batch.labels))
        positions = batch.index[:compared].cpu().numpy()
        drawn = torch.from_numpy(uniform(1, _PROTOTYPE, self._seed, epoch, positions)[:, 0])
        labels = batch.labels[:compared]
        place = (drawn.to(labels.device) * self._counts[labels]).long()  # [n], rounded down
        return self._ordered[self._starts[labels] + place].unsqueeze(1)

    def quantile(self, *, epoch: int, batch: int) -> float:
        """Share of the images that is covered in this batch; alike on all ranks."""
        if self._settings.quantile != "random":
            return self._settings.quantile
        low, high = _RANDOM_QUANTILE
        drawn = uniform(1, _QUANTILE, self._seed, epoch, np.array([batch]))
        return low + float(drawn[0, 0]) * (high - low)
