"""Fast adversarial training: images that a network learns from in place of the given ones.

Training takes a function that alters its images, and knows nothing of attacks; this is that
function.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from protofast.attacks.fgsm import fgsm
from protofast.attacks.objectives import cross_entropy, frozen
from protofast.data.randomness import hash_keys

_TRAINING = 24  # purpose of these random numbers; see protofast.data.randomness


@dataclass(frozen=True, kw_only=True)
class FastAdversarial:
    """FGSM with a random start, anew for each batch (Wong et al. 2020; Hoffmann et al. 2021, F.1).

    For `protofast.training.train(..., perturb=FastAdversarial())`. The network is in eval mode
    meanwhile; that it learns from these images alone, and in which mode, is training's part. The
    noise of an image depends on (seed, epoch, image) alone, so a resumed run stays bit-equal.

    Attributes:
        epsilon: Largest change of a channel of a pixel, of images in [0, 1].
        step_size: Length of the step.
        seed: Key of the noise.
    """

    epsilon: float = 8 / 255
    step_size: float = 10 / 255
    seed: int = 0

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        index: Tensor,
        epoch: int,
        strength: float = 1.0,
    ) -> Tensor:
        """Images [N, channels, S, T] that raise the cross entropy of `model` with `labels` [N].

        Args:
            model: Images to logits, or to an Output; left as it was.
            images: [N, channels, S, T] in [0, 1].
            labels: int64 [N].
            index: int64 [N], what keys each image's noise: its position among all images.
            epoch: What keys it besides.
            strength: What epsilon and the step are multiplied by; at 0 nothing is done.
        """
        if strength == 0:
            return images
        with frozen(model):
            attacked = fgsm(
                cross_entropy(model, labels),
                images,
                epsilon=strength * self.epsilon,
                step_size=strength * self.step_size,
                seed=int(hash_keys(_TRAINING, self.seed, epoch)[0]),
                image_ids=index,
            )
        return attacked.images
