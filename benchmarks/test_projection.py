"""Projection ("push") of 2,000 prototypes on 6,000 images, features given, and the literal loop.

The loop goes over the first images only, 75 at a time as in the published settings; times are
compared per image. Before either is timed, both go over a few images and must agree in everything.
"""

from typing import Any

import numpy as np
import pytest
import torch
from given_features import CLASSES, make_batches, make_model
from original_scans import original_push
from timing import synchronised
from torch import Tensor

from protofast import ProtoPNet, project_prototypes
from protofast.projection import Projection

pytestmark = pytest.mark.benchmark(timer=synchronised)
IMAGES, LITERAL_IMAGES, QUICK_IMAGES = 6000, 600, 150


@pytest.mark.filterwarnings("ignore:the set to project on has no image:UserWarning")
def test_original_push(benchmark: Any, device: str, quick: bool) -> None:
    images = QUICK_IMAGES if quick else LITERAL_IMAGES
    _compare(device)
    batches, model = make_batches(images), make_model(device)
    identity, prototypes = _classes(model), model.prototypes.detach().clone()
    found = benchmark.pedantic(
        original_push, args=(batches, prototypes, identity), rounds=1 if quick else 2
    )
    _assert_equal(model, project_prototypes(model, batches), found, images)
    _describe(benchmark, device, images, "original")


@pytest.mark.filterwarnings("ignore:the set to project on has no image:UserWarning")
def test_project_prototypes(benchmark: Any, device: str, quick: bool) -> None:
    _compare(device)
    batches, model = make_batches(IMAGES), make_model(device)
    before = model.prototypes.detach().clone()

    def start_again() -> None:
        with torch.no_grad():
            model.prototypes.copy_(before)

    def project() -> object:
        return project_prototypes(model, batches)

    projection = benchmark.pedantic(
        project, setup=start_again, rounds=3 if quick else 10, warmup_rounds=1
    )
    assert (projection.images // 30 == model.prototype_class.cpu()).all()
    _describe(benchmark, device, IMAGES, "ours")


def _compare(device: str) -> None:
    """Ours against the literal loop, on the first images."""
    batches, model = make_batches(QUICK_IMAGES), make_model(device)
    found = original_push(batches, model.prototypes.detach().clone(), _classes(model))
    _assert_equal(model, project_prototypes(model, batches), found, QUICK_IMAGES)


def _classes(model: ProtoPNet) -> Tensor:
    """One-hot [P, C], on the CPU, as the loop takes it."""
    return torch.nn.functional.one_hot(model.prototype_class, CLASSES).float().cpu()


def _assert_equal(
    model: ProtoPNet, projection: Projection, literal: tuple[np.ndarray, ...], images: int
) -> None:
    """Every choice, distance and patch, of the prototypes whose class has images."""
    least, sources, locations, patches = literal
    found = sources >= 0
    assert found.sum() == images // 3
    assert np.array_equal(projection.images.numpy(), sources)
    assert np.array_equal(projection.locations.numpy(), locations)
    assert np.array_equal(projection.distances.numpy()[found], least[found])
    assert np.array_equal(model.prototypes.detach().cpu().numpy()[found], patches[found])


def _describe(benchmark: Any, device: str, images: int, how: str) -> None:
    benchmark.group = f"projection {device}"
    facts = {"measured": "projection", "device": device, "images": images, "layer": how}
    benchmark.extra_info.update(facts)
