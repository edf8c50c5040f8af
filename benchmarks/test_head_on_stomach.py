"""The success rate of Head on Stomach, ours and in the structure of the published code.

ResNet-18, 224 x 224, 2,000 prototypes, protocol `released` with its 40 steps, one prototype of each
image. Both sides attack from the same random starts; before anything is timed, they must come to
the same decisions in float64, where rounding leaves no step open.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from original_head_on_stomach import original_success_rate
from timing import synchronised

pytest.importorskip("torchvision", reason="the backbone needs it")
from random_subjects import make_model, make_subject

from protofast import ProtoPNet
from protofast.attacks import uniform_noise
from protofast.audits.audit import Row
from protofast.audits.head_on_stomach import RELEASED, HeadOnStomach

pytestmark = pytest.mark.benchmark(timer=synchronised)


@pytest.mark.parametrize("layer", ["ours", "original"])
def test_head_on_stomach(benchmark: Any, device: str, layer: str, quick: bool) -> None:
    images, steps = {
        ("cpu", True): (2, 2),
        ("cpu", False): (8, 40),
        ("cuda", True): (16, 5),
        ("cuda", False): (64, 40),
    }[device, quick]
    if layer == "original":
        _compare(device)
    run = make_run(make_model(device), images, steps, layer)
    make_run(make_model(device), 1, 1, layer)()  # to warm up
    rows = benchmark.pedantic(run, rounds=1 if quick else 2)
    benchmark.group = f"head on stomach {device}"
    facts = {"measured": "head on stomach", "device": device, "images": images, "steps": steps}
    attacks = sum(row["ranks_tried"] for row in rows)
    benchmark.extra_info.update(facts, layer=layer, attacks=attacks)


def make_run(
    model: ProtoPNet,
    images: int,
    steps: int,
    layer: str,
    *,
    prototypes: int = 1,
    step_size: float = RELEASED.step_size,
) -> Callable[[], list[Row]]:
    """What is timed: from images in memory to the rows of results."""
    settings = RELEASED.model_copy(
        update={"steps": steps, "prototypes": prototypes, "step_size": step_size}
    )
    subject = make_subject(model, images)
    if layer == "ours":
        model.requires_grad_(False)
        return lambda: HeadOnStomach(settings).measure(subject, range(images))
    start = uniform_noise(
        (3, *model.input_size),
        torch.arange(images),
        seed=subject.seed,
        low=-1.0,
        device=subject.device,
    )
    return lambda: original_success_rate(
        model,
        subject.load(range(images)),
        start * settings.epsilon,
        prototypes=prototypes,
        epsilon=settings.epsilon,
        step_size=settings.step_size,
        steps=steps,
    )


def _compare(device: str) -> None:
    """Ours and theirs in float64: equal decisions, and equal similarities behind them.

    On smaller images, and with prototypes that are like nothing in them, so that some are moved.
    """
    model = make_model(device, size=128, apart=2.0).double()
    ours, theirs = (
        make_run(model, 5, 2, layer, prototypes=2, step_size=RELEASED.epsilon)()
        for layer in ("ours", "original")
    )
    decisions = set()
    for mine, other in zip(ours, theirs, strict=True):
        assert bool(mine.get("skipped")) == other.get("skipped", False)
        assert mine["ranks_tried"] == other["ranks_tried"]
        if mine.get("skipped"):
            continue
        for key in ("success", "prototype", "class_after"):
            assert mine[key] == other[key], (key, mine, other)
        assert mine["source_after"] == pytest.approx(other["source_after"], rel=1e-5)
        largest = max(mine["source_after"], mine["elsewhere_after"])
        assert largest == pytest.approx(other["largest_after"], rel=1e-5)
        decisions.add((mine["success"], mine["ranks_tried"]))
    assert len(decisions) > 1, "all images end alike, so that nothing is compared"
