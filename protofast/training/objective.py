"""What training makes small: the weighted sum of the loss's terms."""

from __future__ import annotations

import torch
from torch import Tensor

from protofast.losses import classification_loss, cluster_loss, last_layer_l1, separation_loss
from protofast.models import ProtoPNet
from protofast.training.aligned_pass import Passed
from protofast.training.settings import TrainingSettings


def training_loss(
    passed: Passed,
    labels: Tensor,
    model: ProtoPNet,
    *,
    settings: TrainingSettings,
    class_weights: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """The total and its terms, in the order of ``state.TERMS``; what is not computed is 0.

    Args:
        passed: What came of the batch.
        labels: [N] int64.
        model: The network, for its last layer and the classes of its prototypes.
        settings: Weights of the terms.
        class_weights: [C], or None for equal ones.
    """
    output, alignment = passed
    weights = settings.losses
    cross_entropy = classification_loss(output.logits, labels, class_weights)
    nothing = torch.zeros_like(cross_entropy)
    if output.distances.shape[1] == 0:  # the linear head of the warm stage knows no prototypes
        return weights.cross_entropy * cross_entropy, [cross_entropy, *[nothing] * 4]
    cluster = cluster_loss(output.distances, labels, model.prototype_class)
    separation = separation_loss(output.distances, labels, model.prototype_class)
    l1 = last_layer_l1(model.last_layer.weight, model.prototype_class)
    loss = (
        weights.cross_entropy * cross_entropy
        + weights.cluster * cluster
        - weights.separation * separation
        + weights.l1 * l1
    )
    if alignment is None:
        return loss, [cross_entropy, cluster, separation, l1, nothing]
    loss = loss + settings.alignment.weight * alignment
    return loss, [cross_entropy, cluster, separation, l1, alignment]
