"""The protocol `released` against the published code's own structure, decision by decision."""

import sys
from pathlib import Path

import pytest
import torch
from patch_models import patch_model, random_images, subject_of

from protofast.attacks import uniform_noise
from protofast.audits.head_on_stomach import RELEASED, HeadOnStomach

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("needs the folder benchmarks/ of a checkout", allow_module_level=True)
sys.path.append(str(BENCHMARKS))

from original_head_on_stomach import original_success_rate  # noqa: E402


@pytest.mark.parametrize(("epsilon", "step_size"), [(8 / 255, 2 / 255), (0.1, 0.03)])
def test_decisions_are_those_of_the_published_loop(epsilon: float, step_size: float) -> None:
    model = patch_model(seed=3)
    subject = subject_of(model, random_images(16, 28, 28, seed=5), seed=9)
    settings = RELEASED.model_copy(
        update={"epsilon": epsilon, "step_size": step_size, "steps": 6, "prototypes": 4}
    )
    ours = HeadOnStomach(settings).measure(subject, range(16))
    noise = uniform_noise((3, 28, 28), torch.arange(16), seed=9, low=-1.0) * epsilon
    theirs = original_success_rate(
        model,
        subject.load(range(16)),
        noise,
        prototypes=4,
        epsilon=epsilon,
        step_size=step_size,
        steps=6,
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert bool(mine.get("skipped")) == other.get("skipped", False)
        assert mine["ranks_tried"] == other["ranks_tried"]
        if not mine.get("skipped"):
            for key in ("success", "prototype", "class_after"):
                assert mine[key] == other[key], (key, mine, other)
            assert mine["source_after"] == pytest.approx(other["source_after"], rel=1e-5)
            largest = max(mine["source_after"], mine["elsewhere_after"])
            assert largest == pytest.approx(other["largest_after"], rel=1e-5)
    outcomes = {(row.get("skipped"), row.get("success"), row["ranks_tried"]) for row in ours}
    assert {outcome[1] for outcome in outcomes} == {None, True, False}
    assert {0, 1} <= {tried for reason, _, tried in outcomes if reason}  # even after a failure
