"""What attacks maximise, and the state a model should be in meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protofast.attacks.pgd import Objective, Scored
from protofast.models import Output, PrototypeModel

Classifier = Callable[[Tensor], Tensor | Output]
"""Images -> logits [b, C], or an Output that holds them."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While this holds, the model is in eval mode and its parameters ask for no gradients.

    Afterwards every module has its own mode back and every parameter its own `requires_grad`.
    """
    modes = {module: module.training for module in model.modules()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)


def cross_entropy(model: Classifier, labels: Tensor) -> Objective:
    """Cross entropy of the logits with the labels, which an untargeted attack raises.

    Args:
        model: A classifier, or a prototype model.
        labels: int64 [N], of the original batch.
    """

    def objective(images: Tensor, index: Tensor) -> Tensor:
        return F.cross_entropy(_logits(model, images), labels[index], reduction="none")

    return objective


def misclassified(model: Classifier, labels: Tensor) -> Objective:
    """Cross entropy, until the image is given another class than its label; then it is finished.

    Only images that are still right stay in play, as in Hoffmann et al.'s released evaluation.
    Logits that are not finite count as another class.

    Args:
        model: A classifier, or a prototype model.
        labels: int64 [N], of the original batch.
    """

    def objective(images: Tensor, index: Tensor) -> Scored:
        logits, chosen = _logits(model, images), labels[index]
        right = (logits.argmax(dim=1) == chosen) & logits.isfinite().all(dim=1)
        return Scored(F.cross_entropy(logits, chosen, reduction="none"), ~right)

    return objective


def activation(model: PrototypeModel, prototypes: Tensor, *, sign: float = 1.0) -> Objective:
    """Activation of one prototype per image: its largest similarity to any patch.

    Args:
        model: Any prototype model.
        prototypes: int64 [N], of the original batch.
        sign: -1 lowers it ("make the head disappear").
    """

    def objective(images: Tensor, index: Tensor) -> Tensor:
        chosen = prototypes[index].unsqueeze(1)  # [b, 1]
        maps = model.similarity_map(model.features(images), chosen)  # [b, 1, H, W]
        return sign * torch.amax(maps, dim=(1, 2, 3))

    return objective


def _logits(model: Classifier, images: Tensor) -> Tensor:
    output = model(images)
    return output if isinstance(output, Tensor) else output.logits
