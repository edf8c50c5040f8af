"""Altering training images against the network as it is at this moment.

Adversarial training needs attacks, and training does not import them: it takes a function. The
command line gives the one that the settings ask for.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from protofast.data import Batch
from protofast.errors import SettingsError
from protofast.training.defences import AdversarialSettings


class Perturb(Protocol):
    """What training calls with each batch before it learns from it."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        index: Tensor,
        epoch: int,
        strength: float,
    ) -> Tensor | None:
        """Images to learn from in place of ``images``, or None to leave these.

        Random numbers that are keyed by (seed, ``epoch``, ``index``) keep a resumed run bit-equal;
        so do those of PyTorch's own generators, whose states are saved with a run.

        Args:
            model: Images to an Output, as it is about to learn: whoever puts it into eval mode
                puts it back. It computes in its weights' float32, also where training itself is
                ``bf16-mixed`` or ``16-mixed``. Where ``warm_head`` is ``linear``, the warm stage's
                Output has no prototypes.
            images: [N, channels, S, T] in [0, 1].
            labels: [N] int64.
            index: [N] int64, each image's position among the training images.
            epoch: A number for each pass over the training images in the whole run.
            strength: How much of the full perturbation is due, in [0, 1]: below 1 while
                ``training.adversarial.rise`` says so.
        """


def check_perturb(settings: AdversarialSettings, perturb: Perturb | None) -> None:
    """Makes sure that adversarial training has what it needs.

    Raises:
        SettingsError: The settings ask for it, and there is no ``perturb``, or one whose own
            ``epsilon`` or ``step_size`` is not the settings'.
    """
    if settings.method != "none" and perturb is None:
        raise SettingsError(
            f"training.adversarial.method = {settings.method} needs a function that perturbs "
            "images: pass train(..., perturb=...), say protofast.attacks.FastAdversarial()"
        )
    for key in ("epsilon", "step_size"):
        asked = getattr(settings, key)
        own = getattr(perturb, key, asked)
        if not isinstance(own, int | float):  # of somebody else's making, and meaning
            continue
        if settings.method != "none" and own != asked:
            raise SettingsError(
                f"training.adversarial.{key} is {asked:g}, but perturb has {key} {own:g}: make it "
                f"with {key}=settings.training.adversarial.{key}"
            )


def perturbed(
    perturb: Perturb, module: nn.Module, batch: Batch, *, epoch: int, strength: float
) -> Tensor:
    """The images of a batch after ``perturb``, as constants.

    Raises:
        ValueError: What it returned are not as many images of this size and kind.
    """
    altered = perturb(
        module, batch.images, batch.labels, index=batch.index, epoch=epoch, strength=strength
    )
    if altered is None:
        return batch.images
    there, here = ((list(each.shape), each.dtype) for each in (batch.images, altered))
    if here != there:
        raise ValueError(
            f"perturb must return images as it got them, {there[0]} of {there[1]}, or None; got "
            f"{here[0]} of {here[1]}"
        )
    return altered.detach()
