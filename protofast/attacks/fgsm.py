"""The fast gradient sign method with a random start (Wong et al. 2020)."""

from __future__ import annotations

from torch import Tensor

from protofast.attacks.balls import Extent
from protofast.attacks.pgd import Attacked, Objective, pgd


def fgsm(
    objective: Objective,
    images: Tensor,
    *,
    epsilon: Extent,
    step_size: Extent | None = None,
    random_start: bool = True,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    mask: Tensor | None = None,
    seed: int = 0,
    image_ids: Tensor | None = None,
    evaluate: bool = False,
) -> Attacked:
    """One step along the sign of the gradient from a random point of the ball (FGSM-RS).

    This is `pgd` with one step; it takes one forward and one backward pass. Fast adversarial
    training (Hoffmann et al. 2021, appendix F.1) uses epsilon 8/255 and steps of 10/255 on the
    cross entropy. Put the model into eval mode for it (`frozen` does), as their code does.

    Args:
        objective: See `pgd`.
        images: See `pgd`.
        epsilon: See `pgd`.
        step_size: See `pgd`; None takes 1.25 epsilon, which is 10/255 for 8/255.
        random_start: Whether to start at a random point; without it, this is plain FGSM.
        bounds: See `pgd`.
        mask: See `pgd`.
        seed: See `pgd`.
        image_ids: See `pgd`.
        evaluate: Whether to look at the outcome; without, its values are NaN.
    """
    return pgd(
        objective,
        images,
        epsilon=epsilon,
        step_size=1.25 * epsilon if step_size is None else step_size,
        steps=1,
        random_start=random_start,
        bounds=bounds,
        mask=mask,
        seed=seed,
        image_ids=image_ids,
        evaluate=evaluate,
    )
