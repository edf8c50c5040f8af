"""The spatial-misalignment benchmark, ours and in the structure of the published code.

ResNet-18, 224 x 224, 2,000 prototypes, protocol `paper` with fewer steps than its 40, which all
cost the same. Both sides attack from the same random starts; before anything is timed, they must
come to the same decisions and numbers in float64, where rounding leaves no step open.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from original_misalignment import original_benchmark
from timing import synchronised

pytest.importorskip("torchvision", reason="the backbone needs it")
from random_subjects import CLASSES, SIZE, make_model

from protofast import ProtoPNet
from protofast.attacks import uniform_noise
from protofast.audits.audit import Row, Subject
from protofast.audits.misalignment_attack import PAPER
from protofast.audits.spatial_misalignment import SpatialMisalignment
from protofast.data import ImageSet, MemoryImageSet

pytestmark = pytest.mark.benchmark(timer=synchronised)
LAYERS = {"ours": 0, "original": 1, "original_twice": 2}  # passes of each iterate


@pytest.mark.parametrize("layer", LAYERS)
def test_spatial_misalignment(benchmark: Any, device: str, layer: str, quick: bool) -> None:
    images, steps = {
        ("cpu", True): (2, 2),
        ("cpu", False): (16, 5),
        ("cuda", True): (16, 5),
        ("cuda", False): (64, 20),
    }[device, quick]
    if quick and layer == "original_twice":
        pytest.skip("not in the quick selection")
    if layer != "ours":
        _compare(device, layer)
    model = make_model(device)
    run = make_run(model, images, steps, layer)
    run()
    benchmark.pedantic(run, rounds=1 if quick else 3)
    benchmark.group = f"spatial misalignment {device}"
    facts = {"measured": "spatial misalignment", "device": device, "images": images, "steps": steps}
    benchmark.extra_info.update(facts, layer=layer)


def make_run(model: ProtoPNet, images: int, steps: int, layer: str) -> Callable[[], list[Row]]:
    """What is timed: from images in memory to the rows of results."""
    settings = PAPER.model_copy(update={"steps": steps})
    found = _subject(model, images)
    if layer == "ours":
        model.requires_grad_(False)
        return lambda: SpatialMisalignment(settings).measure(found, range(images))
    model.requires_grad_(True)
    start = uniform_noise(
        (3, SIZE, SIZE),
        torch.arange(images),
        seed=found.seed,
        low=-1.0,
        dtype=model.mean.dtype,
        device=found.device,
    )

    def original() -> list[Row]:
        return original_benchmark(
            model,
            found.load(range(images)).to(model.mean.dtype),
            found.labels.tolist(),
            start,
            epsilon=settings.epsilon,
            step_size=settings.step_size,
            steps=steps,
            forwards=LAYERS[layer],
        )

    return original


def _subject(model: ProtoPNet, count: int) -> Subject:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (count, 3, 14, 14), generator=generator, dtype=torch.uint8)
    pixels = coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)
    source = ImageSet(
        classes=[str(c) for c in range(CLASSES)],
        labels=torch.randint(CLASSES, (count,), generator=generator),
        names=[str(n) for n in range(count)],
        channels=3,
        size=(SIZE, SIZE),
    )
    images = MemoryImageSet(pixels, source=source)
    unknown = torch.zeros(count, dtype=torch.int64)
    return Subject(
        name="random",
        model=model,
        images=images,
        predictions=unknown,
        correct_in_all=unknown.bool(),
    )


def _compare(device: str, layer: str) -> None:
    """Ours and theirs in float64: equal decisions, equal numbers."""
    model = make_model(device).double()
    ours = make_run(copy.deepcopy(model), 2, 2, "ours")()
    theirs = make_run(model, 2, 2, layer)()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["skipped"] == ""
        assert [mine[key] for key in ("x0", "y0", "x1", "y1")] == other["box"]
        for key in ("predicted", "predicted_after", "prototype", "rank_change"):
            assert mine[key] == other[key], (key, mine, other)
        assert mine["activation_change"] == pytest.approx(other["activation_change"], abs=1e-6)
        # Both interpolate as they do: one of 5,000 marked pixels may lie at the quantile itself.
        assert mine["location_change"] == pytest.approx(other["location_change"], abs=0.05)
    assert max(row["activation_change"] for row in ours) > 1
    assert min(row["protected"] for row in ours) < 90
