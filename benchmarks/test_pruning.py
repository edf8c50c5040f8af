"""Pruning of 2,000 prototypes on 6,000 images, features given, and the literal loops of others.

The loops go over the first images only; times are compared per image. Before anything is timed,
it goes over a few images, ours and the loops, and they must agree.
"""

from typing import Any

import numpy as np
import pytest
import torch
from given_features import CLASSES, Batch, make_batches, make_model
from original_scans import cabrnet_nearest, original_nearest, original_prune
from timing import synchronised

from protofast import ProtoPNet
from protofast.pruning import nearest_images, prune_prototypes

pytestmark = pytest.mark.benchmark(timer=synchronised)
IMAGES, LITERAL_IMAGES, QUICK_IMAGES = 6000, 600, 150  # two batches: one without limits
K, THRESHOLD = 6, 3


@pytest.mark.filterwarnings("ignore:class .* lost all its prototypes:UserWarning")
@pytest.mark.parametrize("loop", [original_nearest, cabrnet_nearest])
def test_literal_prune(benchmark: Any, device: str, loop: Any, quick: bool) -> None:
    images = QUICK_IMAGES if quick else LITERAL_IMAGES
    _compare(device, loop)
    batches, model = make_batches(images), make_model(device)
    found = benchmark.pedantic(_literal, args=(loop, batches, model), rounds=1)
    _assert_equal(model, batches, found)
    _describe(benchmark, device, images, loop.__name__.removesuffix("_nearest"))


@pytest.mark.filterwarnings("ignore:class .* lost all its prototypes:UserWarning")
def test_prune_prototypes(benchmark: Any, device: str, quick: bool) -> None:
    _compare(device, original_nearest)
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


def _compare(device: str, loop: Any) -> None:
    """Ours against a literal loop, on the first images."""
    batches, model = make_batches(QUICK_IMAGES), make_model(device)
    _assert_equal(model, batches, _literal(loop, batches, model))


def _literal(
    loop: Any, batches: list[Batch], model: ProtoPNet
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The prototypes that go; labels and distances [P, K] of the nearest images."""
    identity = torch.nn.functional.one_hot(model.prototype_class, CLASSES).float().cpu()
    labels, distances = loop(batches, model.prototypes.detach(), K)
    return original_prune(labels, identity, THRESHOLD), labels, distances


def _assert_equal(
    model: ProtoPNet, batches: list[Batch], literal: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    """Distances, and where no tie leaves a choice, the images and what goes.

    Ours is asked twice: for the nearest images, and to prune the model by them.
    """
    removed, labels, distances = literal
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
    pruning = prune_prototypes(model, batches, k=K, threshold=THRESHOLD)
    assert np.array_equal(
        np.isin(np.arange(len(clear)), pruning.removed.numpy()), counts < THRESHOLD
    )


def _describe(benchmark: Any, device: str, images: int, how: str) -> None:
    benchmark.group = f"pruning {device}"
    facts = {"measured": "pruning", "device": device, "images": images, "layer": how}
    benchmark.extra_info.update(facts)
