"""Projected gradient ascent: the one loop that every attack of the project runs.

An attack maximises an objective of the images, step by step, and stays inside a ball around each
image, a mask and the images' bounds. One forward and one backward pass serve all images of a batch,
and an image whose objective says that it is finished leaves the batch. See `balls` for where an
attack may go and `objectives` for what it may want.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from protofast.attacks.balls import Ball, Extent, L2Ball, LinfBall
from protofast.attacks.checks import as_mask, check_options, check_tensors


class Scored(NamedTuple):
    """What an objective may return in place of its values.

    values: [b], maximised.
    finished: bool [b], whether the image needs no further step.
    """

    values: Tensor
    finished: Tensor


Objective = Callable[[Tensor, Tensor], Tensor | Scored]
"""(images [b, channels, S, T], index int64 [b]: which of the original batch they are) -> [b].

The value of an image may depend on that image alone, so batch norm must be in eval mode.
"""


class Attacked(NamedTuple):
    """What an attack returns.

    images: [N, channels, S, T].
    values: [N], the objective at these images.
    steps: int64 [N], the steps that were taken.
    """

    images: Tensor
    values: Tensor
    steps: Tensor


def pgd(
    objective: Objective,
    images: Tensor,
    *,
    epsilon: Extent,
    step_size: Extent,
    steps: int,
    random_start: bool | Literal["unmasked"] = True,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    mask: Tensor | None = None,
    norm: Literal["linf", "l2"] = "linf",
    restarts: int = 1,
    keep: Literal["last", "best"] = "last",
    seed: int = 0,
    image_ids: Tensor | None = None,
    evaluate: bool = True,
) -> Attacked:
    """Maximise the objective of each image by projected gradient ascent (Madry et al. 2018).

    What comes back is within epsilon of the images, equal to them outside the mask, and within the
    bounds, whatever the gradients are; where a gradient is NaN, no step is taken. Parameters get no
    gradients and the model keeps its mode. It works inside `torch.no_grad()` as well.

    Args:
        objective: What to maximise; see `Objective`. Returning `Scored` lets images that are
            finished leave, as they are; the others go on as if they had never been there.
        images: [N, channels, S, T], floating point.
        epsilon: Radius of the ball: a number, or a tensor that broadcasts to the images (per
            channel, say; `l2` takes one per image).
        step_size: Length of a step, likewise; in the norm of the ball, so `linf` follows the sign
            of the gradient.
        steps: How many. 0 only judges the start.
        random_start: Whether to start at a random point of the ball. `"unmasked"`: of the ball
            without the mask; what lies outside the mask vanishes at the first step, and the start
            itself counts neither as finished nor as best (Hoffmann et al.'s released code).
        bounds: Least and largest value of a pixel; None for none. A pixel that is beyond them from
            the start does not go farther.
        mask: Which pixels may change: bool, or 0 and 1, broadcastable to the images.
        norm: Of the ball.
        restarts: How often to begin anew, from another random start, for images that are not
            finished. The finished one, else the one of the largest value, is kept, the earlier if
            they are equal.
        keep: The `last` iterate of a restart (or the one that was finished), or its `best`.
        seed: Key of the random start.
        image_ids: int64 [N], further keys of it, one per image; by default 0 ... N-1. With them,
            an image's start does not depend on its batch.
        evaluate: Whether to look at the last iterate. If not, which spares a forward pass, values
            are NaN for images that were not finished before; needs `keep="last"` and one restart.

    Returns:
        Attacked(images, values, steps), without gradients.

    Raises:
        TypeError, ValueError: Arguments do not fit one another, or the objective's values are not
            [b], or do not depend on the images, so that no step could ever be taken.
    """
    check_options(epsilon, step_size, steps, random_start, bounds, norm, restarts, keep, evaluate)
    ids = torch.arange(images.shape[0]) if image_ids is None else image_ids
    check_tensors(images, epsilon, step_size, ids, norm)
    with torch.inference_mode(False), torch.no_grad():
        images = images.detach().clone()
        ball = (LinfBall if norm == "linf" else L2Ball)(
            images,
            epsilon=epsilon,
            step_size=step_size,
            mask=as_mask(mask, images),
            bounds=bounds,
        )
        climb = _Climb(objective, steps, keep, evaluate, hidden_start=random_start == "unmasked")
        open_ = torch.arange(len(images), device=images.device)  # not finished yet
        found = _nothing_found(images)
        for restart in range(restarts if len(images) else 0):
            some = ball.rows(open_)
            start = some.images
            if random_start:
                start = some.start(
                    ids[open_.to(ids.device)],
                    seed=seed,
                    restart=restart,
                    masked=random_start != "unmasked",
                )
            tried = climb(some, start, open_)
            _take_over(found, tried, open_, first=restart == 0)
            open_ = open_[~tried.finished]
            if len(open_) == 0:
                break
    return Attacked(found.images, found.values, found.steps)


@dataclass
class _Found:
    """The outcome for some images: their images, values, steps, and whether they are finished."""

    images: Tensor
    values: Tensor
    steps: Tensor
    finished: Tensor


def _nothing_found(images: Tensor) -> _Found:
    """The images as they are, of unknown value."""
    count, device = len(images), images.device
    return _Found(
        images.clone(),
        images.new_full((count,), torch.nan),
        torch.zeros(count, dtype=torch.int64, device=device),
        torch.zeros(count, dtype=torch.bool, device=device),
    )


def _take_over(found: _Found, tried: _Found, rows: Tensor, *, first: bool) -> None:
    """Put what a restart found for some rows in place of what was known, where it is better."""
    better = tried.finished | _exceeds(tried.values, found.values[rows])
    chosen = torch.ones_like(better) if first else better
    for name in ("images", "values", "steps", "finished"):
        known, new = getattr(found, name), getattr(tried, name)
        known[rows[chosen]] = new[chosen]


def _exceeds(values: Tensor, others: Tensor) -> Tensor:
    """Whether a value is larger; NaN is the least of all."""
    return (values > others) | (others.isnan() & ~values.isnan())


@dataclass(frozen=True)
class _Climb:
    """One ascent of a batch; see `pgd` for the fields."""

    objective: Objective
    steps: int
    keep: Literal["last", "best"]
    evaluate: bool
    hidden_start: bool

    def __call__(self, ball: Ball, images: Tensor, index: Tensor) -> _Found:
        """From `images` [b, ...] in their balls; `index` [b] is what the objective gets."""
        found = _nothing_found(ball.inside(images))
        rows = torch.arange(len(images), device=images.device)  # those still in play
        for step in range(self.steps + 1):
            last = step == self.steps
            found.steps[rows] = step
            if last:
                images = ball.inside(images)  # only a hidden start is not
                if not self.evaluate:
                    found.images[rows] = images
                    break
            score, gradient = self._look(images, index[rows], differentiate=not last)
            if step > 0 or last or not self.hidden_start:
                self._record(found, rows, images, score, last=last)
                if bool(score.finished.any()):
                    left = (~score.finished).nonzero()[:, 0]
                    rows, images, ball = rows[left], images[left], ball.rows(left)
                    gradient = None if gradient is None else gradient[left]
            if len(rows) == 0 or gradient is None:
                break
            images = ball.step(images, gradient)
        return found

    def _record(
        self, found: _Found, rows: Tensor, images: Tensor, score: Scored, *, last: bool
    ) -> None:
        """Note the iterates that are finished, the last ones or the best ones so far."""
        found.finished[rows] = score.finished
        if self.keep == "best":
            chosen = score.finished | _exceeds(score.values, found.values[rows])
        else:
            chosen = torch.ones_like(score.finished) if last else score.finished
        found.images[rows[chosen]] = images[chosen]
        found.values[rows[chosen]] = score.values[chosen]

    def _look(
        self, images: Tensor, index: Tensor, *, differentiate: bool
    ) -> tuple[Scored, Tensor | None]:
        """The objective at the images and, if asked for, its gradient there."""
        images = images.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            score = self.objective(images, index)
            score = score if isinstance(score, Scored) else Scored(score, _none_of(score))
        values, finished = score
        for name, part in (("values", values), ("finished", finished)):
            if part.shape != (len(images),):
                raise ValueError(
                    f"the objective's {name} must be [{len(images)}], one for each image; got "
                    f"{list(part.shape)}"
                )
        gradient = None
        if differentiate:
            gradient = _gradient(values, images)
        return Scored(values.detach().to(images.dtype), finished.detach().bool()), gradient


def _none_of(values: Tensor) -> Tensor:
    return torch.zeros_like(values, dtype=torch.bool)


def _gradient(values: Tensor, images: Tensor) -> Tensor:
    """Of each value with respect to its image; parameters are left alone."""
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(
            values, images, torch.ones_like(values), allow_unused=True
        )
    if gradient is None:
        raise ValueError(
            "the objective's values do not depend on the images, so no step can be taken; is it "
            "computed without gradients, or from other images than those it is given?"
        )
    return gradient
