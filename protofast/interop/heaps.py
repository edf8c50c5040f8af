"""The k nearest images of every prototype, held as the original code holds them.

There each prototype has a heap (Python's heapq) with the farthest image on top; an image replaces
it if it is strictly nearer. Which of several equally far images leaves then depends on where the
heap's moves have put them. Here all P heaps move at once, by the same steps, so that equal
distances (blank borders, repeated images) end in the same choice.
"""

from typing import Any

import numpy as np


class Heaps:
    """P heaps of at most k images.

    Args:
        count: P.
        k: images held for each.

    Attributes:
        labels: int64 [P, min(k, images seen)], the classes of the images held, in no useful order.
    """

    def __init__(self, count: int, k: int) -> None:
        self.k, self.size = k, 0
        self._distances = np.full((count, k), np.inf)
        self._labels = np.full((count, k), -1)

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        """See the class."""
        return self._labels[:, : self.size]

    def worst(self) -> np.ndarray[Any, Any]:
        """The distance [P] that an image must be below; infinite until k images are held."""
        if self.size < self.k:
            return np.full(len(self._distances), np.inf)
        return self._distances[:, 0].copy()

    def update(self, distances: np.ndarray[Any, Any], labels: list[int]) -> None:
        """Offer images in order: their distances [N, P] and classes [N]."""
        everyone = np.arange(len(self._distances))
        for row, label in zip(distances, labels, strict=True):
            if self.size < self.k:  # heappush
                last = np.full(len(everyone), self.size)
                self.size += 1
                self._raise(everyone, last, row, np.full(len(everyone), label))
                continue
            entering = np.flatnonzero(row < self._distances[:, 0])
            if len(entering):  # heappushpop
                hole = self._sink_hole(entering)
                self._raise(entering, hole, row[entering], np.full(len(entering), label))

    def _sink_hole(self, heaps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Empty the top of these heaps and pull the farther child up, down to a leaf: its place."""
        places = np.zeros(len(heaps), dtype=np.int64)
        while True:
            child = 2 * places + 1
            moving = np.flatnonzero(child < self.size)
            if len(moving) == 0:
                return places
            which, left = heaps[moving], child[moving]
            right = np.minimum(left + 1, self.size - 1)
            # The left child only if it is strictly farther, as heapq's comparison has it.
            take_left = self._distances[which, left] > self._distances[which, right]
            chosen = np.where(take_left | (left + 1 >= self.size), left, left + 1)
            self._move(which, chosen, places[moving])
            places[moving] = chosen

    def _raise(
        self,
        heaps: np.ndarray[Any, Any],
        places: np.ndarray[Any, Any],
        distances: np.ndarray[Any, Any],
        labels: np.ndarray[Any, Any],
    ) -> None:
        """Put items into the holes at `places`, above every ancestor that is strictly nearer."""
        places = places.copy()
        while True:
            parent = np.maximum((places - 1) >> 1, 0)
            up = (places > 0) & (distances > self._distances[heaps, parent])
            moving = np.flatnonzero(up)
            if len(moving) == 0:
                break
            self._move(heaps[moving], parent[moving], places[moving])
            places[moving] = parent[moving]
        self._distances[heaps, places] = distances
        self._labels[heaps, places] = labels

    def _move(
        self,
        heaps: np.ndarray[Any, Any],
        source: np.ndarray[Any, Any],
        target: np.ndarray[Any, Any],
    ) -> None:
        self._distances[heaps, target] = self._distances[heaps, source]
        self._labels[heaps, target] = self._labels[heaps, source]
