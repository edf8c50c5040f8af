"""Projection ("push") of 2,000 prototypes on 6,000 images, features given, and the literal loop.

The loop goes over the first images only, 75 at a time as in the published settings; times are
compared per image.
"""

from typing import Any

import numpy as np
import pytest
import torch
from given_features import CLASSES, make_batches, make_model
from original_scans import original_push
from timing import synchronised

from protofast import project_prototypes

pytestmark = pytest.mark.benchmark(timer=synchronised)
IMAGES, LITERAL_IMAGES, QUICK_IMAGES = 6000, 600, 150


@pytest.mark.filterwarnings("ignore:the set to project on has no image:UserWarning")
def test_original_push(benchmark: Any, device: str, quick: bool) -> None:
    images = QUICK_IMAGES if quick else LITERAL_IMAGES
    batches, model = make_batches(images), make_model(device)
    identity = torch.nn.functional.one_hot(model.prototype_class, CLASSES).float().cpu()
    prototypes = model.prototypes.detach().clone()
    least, sources, locations, patches = benchmark.pedantic(
        original_push, args=(batches, prototypes, identity), rounds=1 if quick else 2
    )
    projection = project_prototypes(model, batches)
    found = sources >= 0
    assert found.sum() == images // 3
    assert np.array_equal(projection.images.numpy(), sources)
    assert np.array_equal(projection.locations.numpy(), locations)
    assert np.array_equal(projection.distances.numpy()[found], least[found])
    assert np.array_equal(model.prototypes.detach().cpu().numpy()[found], patches[found])
    _describe(benchmark, device, images, "original")


def test_project_prototypes(benchmark: Any, device: str, quick: bool) -> None:
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


def _describe(benchmark: Any, device: str, images: int, how: str) -> None:
    benchmark.group = f"projection {device}"
    facts = {"measured": "projection", "device": device, "images": images, "layer": how}
    benchmark.extra_info.update(facts)
