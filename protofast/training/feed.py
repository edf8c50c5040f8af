"""Which images a step of the plan sees, in which order, on this rank."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_fabric import Fabric
from torch import Tensor

from protofast.data import Augmentation, Batch, Batches, ImageSet, Splits
from protofast.data.batches import Alteration
from protofast.errors import DataError
from protofast.training.activations import IndexBatch, index_batches
from protofast.training.schedule import PlanStep
from protofast.training.settings import Settings

_PASSES = 1 << 20  # more than any epoch has


class Feed:
    """Batches for training, projecting and testing, already on the rank's device.

    With several ranks the last training batch of a pass is left out if it is not full everywhere,
    because ranks must take the same number of steps with batches of the same size.

    Args:
        settings: What to do.
        data: The images.
        fabric: Device and ranks.
        mean: By which the network normalises, [channels]; for masking.
        std: Likewise.

    Raises:
        DataError: There are no test images; or fewer training images than one batch of all ranks,
            where there are several.
    """

    def __init__(
        self, settings: Settings, data: Splits, fabric: Fabric, *, mean: Tensor, std: Tensor
    ) -> None:
        self.data = data
        self._training = settings.training
        self._fabric = fabric
        self._jpeg = settings.training.jpeg.build()
        self._alterations = _alterations(settings, mean, std)
        if len(data.test) == 0:
            raise DataError(
                "there are no test images, so there is no telling which checkpoint is best; give "
                "some (data.test_root, or a larger data.test_fraction)"
            )
        self.per_pass = self._pass(0, 0, augment=False).total
        if self.per_pass == 0:
            raise DataError(
                f"{len(data.train)} training images do not fill one batch of "
                f"{fabric.world_size} times {settings.training.batch_size}; make "
                "training.batch_size smaller"
            )

    @property
    def smallest_batch(self) -> int:
        """Images in the smallest training batch of a rank."""
        size = self._training.batch_size
        if self._fabric.world_size > 1:
            return size
        return len(self.data.train) % size or size

    def passes(self, step: PlanStep) -> int:
        """Passes over the training images in an epoch of this stage."""
        schedule = self._training.schedule
        return schedule.last_layer_passes if step.stage == "last_layer" else schedule.passes

    def batches_in(self, step: PlanStep) -> int:
        """Training batches in an epoch of this stage."""
        return self.per_pass * self.passes(step)

    def key(self, step: PlanStep, batch: int) -> int:
        """What the random numbers of a step's batch are keyed by: a number for each pass."""
        return step.step * _PASSES + batch // self.per_pass

    def training(self, step: PlanStep, start: int) -> Iterator[Batch]:
        """Shuffled, augmented batches of a step, from batch number ``start`` on."""
        for number in range(start // self.per_pass, self.passes(step)):
            within = max(0, start - number * self.per_pass)
            yield from self._pass(step.step * _PASSES + number, within)

    def training_index(self, step: PlanStep, start: int) -> Iterator[IndexBatch]:
        """The same without the images."""
        for number in range(start // self.per_pass, self.passes(step)):
            within = max(0, start - number * self.per_pass)
            batches = self._pass(step.step * _PASSES + number, within)
            yield from index_batches(batches, self._fabric.device)

    def whole_training_set(self) -> Batches:
        """All un-augmented training images in order, the same on every rank."""
        return self._plain(self.data.train, self._training.test_batch_size, shared=False)

    def projecting(self) -> Batches:
        """This rank's share of the images to project on."""
        return self._plain(self.data.project, self._training.project_batch_size)

    def testing(self) -> Batches:
        """This rank's share of the test images."""
        return self._plain(self.data.test, self._training.test_batch_size)

    def _pass(self, key: int, start: int, *, augment: bool = True) -> Batches:
        seed, fabric = self._training.seed, self._fabric
        return Batches(
            self.data.train,
            self._training.batch_size,
            order=("shuffle", seed, key),
            start=start,
            jpeg=self._jpeg if augment else None,
            augment=self._alterations if augment else None,
            seed=seed,
            epoch=key,
            rank=fabric.global_rank,
            world=fabric.world_size,
            workers=self._training.workers,
            drop_last=fabric.world_size > 1,
            pin_memory=fabric.device.type == "cuda",
            device=fabric.device,
        )

    def _plain(self, images: ImageSet, batch_size: int, *, shared: bool = True) -> Batches:
        fabric = self._fabric
        return Batches(
            images,
            batch_size,
            rank=fabric.global_rank if shared else 0,
            world=fabric.world_size if shared else 1,
            workers=self._training.workers,
            pin_memory=fabric.device.type == "cuda",
            device=fabric.device,
        )


def _alterations(settings: Settings, mean: Tensor, std: Tensor) -> list[Alteration]:
    """What happens to training images, first to last."""
    training, found = settings.training, list[Alteration]()
    augmentation = training.augmentation.build()
    if augmentation != Augmentation.none():
        found.append(augmentation)
    if training.masking.probability:
        found.append(training.masking.build(mean, std))
    return found
