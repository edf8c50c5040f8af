"""Arguments that an attack refuses, and the empty batch, which it does not."""

import math

import pytest
import torch
from rough_objective import rough

from protofast.attacks import pgd


def test_no_images_at_all():
    def objective(images, index):
        raise AssertionError("there is nothing to look at")

    for norm in ("linf", "l2"):
        attacked = pgd(
            objective, torch.zeros(0, 3, 4, 4), epsilon=0.1, step_size=0.1, steps=3, norm=norm
        )
        assert [list(part.shape) for part in attacked] == [[0, 3, 4, 4], [0], [0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -0.1}, "epsilon must be finite and not negative"),
        ({"step_size": math.nan}, "step_size must be finite"),
        ({"epsilon": torch.tensor([0.1, -0.1, 0.0]).view(3, 1, 1)}, "epsilon must be finite"),
        ({"epsilon": torch.ones(2, 1, 1)}, "epsilon must be a number or a tensor that broadcasts"),
        ({"norm": "l2", "epsilon": torch.ones(3, 1, 1)}, r"broadcasts to \[2, 1, 1, 1\]"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"restarts": 0}, "restarts at least 1"),
        ({"norm": "l1"}, "norm must be one of linf, l2"),
        ({"keep": "first"}, "keep must be one of last, best"),
        ({"random_start": "masked"}, "random_start must be"),
        ({"bounds": (1.0, 0.0)}, "bounds must be"),
        ({"mask": torch.full((1, 1, 4, 4), 0.5)}, "mask must be bool"),
        ({"mask": torch.ones(2, 1, 5, 4)}, "mask must broadcast to the images"),
        ({"evaluate": False, "keep": "best"}, "evaluate=False needs"),
        ({"image_ids": torch.zeros(3, dtype=torch.int64)}, "image_ids must be int64"),
    ],
)
def test_arguments_that_cannot_be_meant(options, message):
    given_options = {"epsilon": 0.1, "step_size": 0.1, "steps": 1, **options}
    with pytest.raises((ValueError, TypeError), match=message):
        pgd(rough, torch.rand(2, 3, 4, 4), **given_options)


def test_objectives_that_could_never_take_a_step_are_refused():
    """An attack that silently takes no step is how published numbers went wrong."""
    images = torch.rand(2, 3, 4, 4)
    options = {"epsilon": 0.1, "step_size": 0.1, "steps": 1}
    with pytest.raises(ValueError, match="do not depend on the images"):
        pgd(lambda images, index: images.detach().sum(dim=(1, 2, 3)), images, **options)
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="do not depend on the images"):
        pgd(lambda images, index: weight * 2, images, **options)
    with pytest.raises(ValueError, match=r"values must be \[2\]"):
        pgd(lambda images, index: images.sum(), images, **options)
