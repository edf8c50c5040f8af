"""Batches of images, the same for any number of ranks and threads and wherever a run resumed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from protofast.data.image_set import ImageSet
from protofast.data.jpeg import JpegAugmentation
from protofast.data.randomness import permutation

Order = tuple[Literal["shuffle"], int, int]  # ("shuffle", seed, epoch)
_ORDER = 1  # purpose of these random numbers; see randomness.py
_AHEAD = 2  # batches that are decoded ahead of the one in use


class Batch(NamedTuple):
    """Images with their labels and their positions in the ImageSet."""

    images: Tensor  # [N, channels, S, T] float32 in [0, 1]
    labels: Tensor  # [N] int64
    index: Tensor  # type: ignore[assignment]  # [N] int64


class Alteration(Protocol):
    """What may be done to images: :class:`Augmentation`, for example."""

    def __call__(self, images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Images [N, channels, S, T] in [0, 1] to others; depends on nothing but the arguments."""


class Batches:
    """The images of an ImageSet, batch by batch; iterate over it as often as you like.

    The order depends on (seed, epoch) alone and the augmentation of an image on (seed, epoch, its
    index) alone. Batch b of ``world`` ranks is, put together, batch b of one rank with ``world``
    times the batch size.

    Args:
        image_set: Where the images come from. Its ``size`` must be fixed, unless ``batch_size`` is
            1.
        batch_size: Images per batch and rank.
        order: None for the ImageSet's own order, or ``("shuffle", seed, epoch)``.
        start: Number of the first batch to yield, to resume in the middle of an epoch. ``len()``
            counts what is left.
        augment: What to do to the images, in this order.
        jpeg: Which images are compressed to JPEG, before ``augment``; or None.
        seed: Key of the augmentation.
        epoch: Key of the augmentation.
        rank: Which share of each batch is this process's.
        world: Number of processes. Each gets the same number of batches; where the last one has too
            few images for all, its share may be empty, unless ``drop_last``.
        workers: Threads that decode ahead of use; 0 decodes when a batch is asked for. Useless for
            images in memory.
        drop_last: Leave out the last batch if it is not full on every rank.
        pin_memory: Put images into page-locked memory, for asynchronous copies to a GPU; without
            CUDA it does nothing.
        device: Where the batches should live. The images cross as bytes and become floating-point
            numbers there.

    Raises:
        DataError: While iterating: an image cannot be read; the message names its file.
    """

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        *,
        order: Order | None = None,
        start: int = 0,
        augment: Alteration | Sequence[Alteration] | None = None,
        jpeg: JpegAugmentation | None = None,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        drop_last: bool = False,
        pin_memory: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0 … world-1, got rank {rank} of world {world}")
        if start < 0 or workers < 0:
            raise ValueError(f"start and workers must not be negative, got {start} and {workers}")
        if image_set.size is None and batch_size > 1:
            raise ValueError(
                "images of different sizes need batch_size=1, or open the data with a size"
            )
        if order is not None and (len(order) != 3 or order[0] != "shuffle"):
            raise ValueError(f'order must be None or ("shuffle", seed, epoch), got {order!r}')
        self.image_set = image_set
        self.batch_size = batch_size
        self.order = order
        self.start = start
        self.jpeg = jpeg
        self.augment = (augment,) if callable(augment) else tuple(augment or ())
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world = world
        self.workers = workers
        self.drop_last = drop_last
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.device = None if device is None else torch.device(device)

    @property
    def total(self) -> int:
        """Number of batches of the whole epoch, those before ``start`` included."""
        whole = self.batch_size * self.world
        images = len(self.image_set)
        return images // whole if self.drop_last else -(-images // whole)

    def __len__(self) -> int:
        return max(0, self.total - self.start)

    def indices(self) -> Iterator[Tensor]:
        """This rank's image positions [N] int64 of each batch from ``start`` on."""
        images = len(self.image_set)
        if self.order is None:
            positions = np.arange(images, dtype=np.int64)
        else:
            positions = permutation(images, _ORDER, self.order[1], self.order[2])
        whole = self.batch_size * self.world
        for batch in range(self.start, self.total):
            share = positions[batch * whole : (batch + 1) * whole][self.rank :: self.world]
            yield torch.from_numpy(share.copy())

    def __iter__(self) -> Iterator[Batch]:
        pixels = getattr(self.image_set, "pixels", None)
        if isinstance(pixels, Tensor):
            for index in self.indices():
                yield self._batch(pixels[index], index)
        elif self.workers == 0:
            for index in self.indices():
                yield self._batch(
                    self._stack([self.image_set.image(i) for i in index.tolist()]), index
                )
        else:
            yield from self._decoded_ahead()

    def _decoded_ahead(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="protofast-decode")
        waiting: deque[tuple[Tensor, list[Future[Tensor]]]] = deque()
        try:
            for index in self.indices():
                waiting.append(
                    (index, [pool.submit(self.image_set.image, i) for i in index.tolist()])
                )
                if len(waiting) > _AHEAD:
                    yield self._collect(*waiting.popleft())
            while waiting:
                yield self._collect(*waiting.popleft())
        finally:
            # Runs as well when the loop over the batches is left early or an image fails.
            pool.shutdown(wait=True, cancel_futures=True)

    def _collect(self, index: Tensor, futures: list[Future[Tensor]]) -> Batch:
        return self._batch(self._stack([future.result() for future in futures]), index)

    def _stack(self, images: list[Tensor]) -> Tensor:
        if images:
            return torch.stack(images)
        return torch.empty(
            (0, self.image_set.channels, *(self.image_set.size or (0, 0))), dtype=torch.uint8
        )

    def _batch(self, pixels: Tensor, index: Tensor) -> Batch:
        """Moves the bytes [N, channels, S, T] to the device, makes numbers of them and augments."""
        labels = self.image_set.labels[index]
        if self.jpeg is not None:
            pixels = self.jpeg(pixels, index, seed=self.seed, epoch=self.epoch)
        if self.pin_memory:
            pixels, labels = pixels.pin_memory(), labels.pin_memory()
        positions = index
        if self.device is not None:
            pixels = pixels.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            positions = index.to(self.device, non_blocking=True)
        images = pixels.to(torch.float32).div_(255)
        for alter in self.augment:
            images = alter(images, index, seed=self.seed, epoch=self.epoch)
        return Batch(images, labels, positions)
