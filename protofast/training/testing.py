"""Testing while a run goes on: a few numbers over all ranks, no files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional as F

from protofast.data import Batch
from protofast.scan import evaluating


def run_test(
    fabric: Fabric,
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    classes: int,
    tick: Callable[[int], None],
) -> dict[str, Any]:
    """Accuracy, balanced accuracy (mean recall over the classes present) and cross entropy.

    In float32 and eval mode, whatever precision the model is trained in.

    Args:
        fabric: Over whose ranks the numbers are added up.
        module: From images to an Output; the bare one.
        batches: This rank's share of the test images.
        classes: C.
        tick: Called with the number of images of each finished batch.
    """
    started = time.monotonic()
    counts = torch.zeros(3, classes, dtype=torch.float64, device=fabric.device)
    with evaluating(module):
        for batch in batches:
            if len(batch.labels):
                logits = module(batch.images).logits
                losses = F.cross_entropy(logits, batch.labels, reduction="none")
                right = logits.argmax(1) == batch.labels
                of_class = F.one_hot(batch.labels, classes).to(torch.float64)  # [N, C]
                values = torch.stack([torch.ones_like(losses), right.to(losses.dtype), losses])
                counts += values.to(torch.float64) @ of_class
            tick(len(batch.labels))
    if fabric.world_size > 1:
        counts = fabric.all_reduce(counts, reduce_op="sum")  # type: ignore[assignment]
    images, right_of_class, losses_of_class = counts.cpu()
    present = images > 0
    total = int(images.sum())
    seconds = time.monotonic() - started
    return {
        "accuracy": float(right_of_class.sum()) / max(total, 1),
        "balanced_accuracy": float((right_of_class[present] / images[present]).mean()),
        "loss": float(losses_of_class.sum()) / max(total, 1),
        "images": total,
        "seconds": seconds,
        "images_per_second": total / max(seconds, 1e-9),
    }
