"""Pruning of 2,000 prototypes on 6,000 images, features given, and the literal loops of others.

The loops go over the first images only; times are compared per image.
"""

from typing import Any

import numpy as np
import pytest
import torch
from given_features import CLASSES, make_batches, make_model
from original_scans import cabrnet_nearest, original_nearest, original_prune
from timing import synchronised

from protofast.pruning import nearest_images, prune_prototypes

pytestmark = pytest.mark.benchmark(timer=synchronised)
IMAGES, LITERAL_IMAGES, QUICK_IMAGES = 6000, 600, 75
K, THRESHOLD = 6, 3


@pytest.mark.parametrize("loop", [original_nearest, cabrnet_nearest])
def test_literal_prune(benchmark: Any, device: str, loop: Any, quick: bool) -> None:
    images = QUICK_IMAGES if quick else LITERAL_IMAGES
    batches, model = make_batches(images), make_model(device)
    identity = torch.nn.functional.one_hot(model.prototype_class, CLASSES).float().cpu()
    prototypes = model.prototypes.detach()

    def prune() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels, distances = loop(batches, prototypes, K)
        return original_prune(labels, identity, THRESHOLD), labels, distances

    removed, labels, distances = benchmark.pedantic(prune, rounds=1)
    nearest = nearest_images(model, batches, k=K + 1)
    assert np.array_equal(nearest.distances.numpy()[:, :K], distances)
    # Of images that tie for the last place, a heap keeps whichever lies deepest.
    clear = (nearest.distances[:, K - 1] < nearest.distances[:, K]).numpy()
    assert clear.mean() > 0.5
    ours = np.sort(nearest.labels.numpy()[:, :K], axis=1)
    assert np.array_equal(ours[clear], np.sort(labels, axis=1)[clear])
    counts = (nearest.labels[:, :K] == model.prototype_class.cpu()[:, None]).sum(dim=1).numpy()
    goes = np.isin(np.arange(len(clear)), removed)
    assert np.array_equal((counts < THRESHOLD)[clear], goes[clear])
    _describe(benchmark, device, images, loop.__name__.removesuffix("_nearest"))


@pytest.mark.filterwarnings("ignore:class .* lost all its prototypes:UserWarning")
def test_prune_prototypes(benchmark: Any, device: str, quick: bool) -> None:
    batches = make_batches(IMAGES)

    def fresh_model() -> tuple[tuple[object, ...], dict[str, object]]:
        return (make_model(device),), {}

    def prune(model: Any) -> object:
        return prune_prototypes(model, batches, k=K, threshold=THRESHOLD)

    rounds = 2 if quick else 5
    pruning = benchmark.pedantic(prune, setup=fresh_model, rounds=rounds, warmup_rounds=1)
    assert len(pruning.keep) > 0
    assert len(pruning.removed) > 0
    _describe(benchmark, device, IMAGES, "ours")


def _describe(benchmark: Any, device: str, images: int, how: str) -> None:
    benchmark.group = f"pruning {device}"
    facts = {"measured": "pruning", "device": device, "images": images, "layer": how}
    benchmark.extra_info.update(facts)
