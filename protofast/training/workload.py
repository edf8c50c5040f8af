"""How much there is to do, in images, for the bar that tells the time left."""

from __future__ import annotations

from protofast.training.feed import Feed
from protofast.training.schedule import PlanStep, is_tested
from protofast.training.settings import Settings
from protofast.training.stages import Stages


class Workload:
    """Images that the steps of a plan look at, over all ranks.

    Args:
        settings: What to do.
        feed: The images.
        stages: What is looked at before an epoch.
        world: Number of ranks.
    """

    def __init__(self, settings: Settings, feed: Feed, stages: Stages, world: int) -> None:
        self._training = settings.training
        self._feed = feed
        self._stages = stages
        self._whole = settings.training.batch_size * world
        self._pass = min(len(feed.data.train), feed.per_pass * self._whole)

    def of_epoch(self, step: PlanStep) -> int:
        """Training images of an epoch."""
        return self._pass * self._feed.passes(step)

    def learnt(self, batches: int) -> int:
        """Training images of so many batches of an epoch."""
        passes, rest = divmod(batches, self._feed.per_pass)
        return passes * self._pass + rest * self._whole

    def of(self, step: PlanStep) -> int:
        """All images of a step."""
        data = self._feed.data
        tested = len(data.test) if is_tested(step, self._training) else 0
        if step.stage == "project":
            return len(data.project) + tested
        learnt = 0 if self._stages.is_plain(step) else self.of_epoch(step)
        return self._stages.preparation(step) + learnt + tested

    def done(self, steps: list[PlanStep], step: int, batches: int) -> int:
        """Images of a run that is taken up; what has to be looked at again is not among them.

        Args:
            steps: The plan.
            step: How many of them are done.
            batches: Of the step under way.
        """
        before = sum(self.of(each) for each in steps[:step])
        if step == len(steps):
            return before
        here = steps[step]
        if self._stages.is_plain(here):  # the activations are not saved
            return before - (len(self._feed.data.train) if here.index else 0)
        if batches == 0:
            return before
        return before + self._stages.preparation(here) + self.learnt(batches)
