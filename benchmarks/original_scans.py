"""ProtoPNet's push and search of the nearest images by their literal rules: loops in Python.

Written from the rules of the published code (push.py, find_nearest.py; Chen et al. 2019), with what
a set of given features needs and no more: receptive fields, crops and pictures are left out, which
makes these baselines faster than the code they stand for. CaBRNet's search stands beside them.
"""

import heapq
from collections.abc import Iterable

import numpy as np
import torch
from baselines import original_distance_map
from given_features import Batch
from torch import Tensor


def original_push(
    batches: Iterable[Batch], prototypes: Tensor, class_identity: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Nearest patch of the own class for every prototype.

    The least distance in a batch is taken over if it is strictly below the least so far.

    Args:
        batches: features, labels and positions.
        prototypes: [P, D].
        class_identity: one-hot [P, C], as the published code keeps it.

    Returns:
        Distances [P], images [P], locations [P] and patches [P, D] (float64 buffer, zeros for a
        class without images), as numpy arrays.
    """
    count, classes = class_identity.shape
    least = np.full(count, np.inf)
    images, locations = np.full(count, -1), np.full(count, -1)
    patches = np.zeros((count, prototypes.shape[1]))
    for batch in batches:
        with torch.no_grad():
            features = batch.images.to(prototypes.device)
            distances = original_distance_map(features, prototypes).cpu().numpy().copy()
        maps = features.cpu().numpy().copy()
        rows_of_class: dict[int, list[int]] = {label: [] for label in range(classes)}
        for row, label in enumerate(batch.labels):
            rows_of_class[label.item()].append(row)
        for j in range(count):
            rows = rows_of_class[torch.argmax(class_identity[j]).item()]
            if not rows:
                continue
            own = distances[rows][:, j, :, :]
            nearest = np.amin(own)
            if nearest < least[j]:
                row, h, w = np.unravel_index(np.argmin(own, axis=None), own.shape)
                least[j] = nearest
                images[j] = batch.index[rows[row]]
                locations[j] = h * own.shape[2] + w
                patches[j] = maps[rows[row], :, h, w]
    return least, images, locations, patches


class _Image:
    """One entry of a heap whose root is the farthest image."""

    def __init__(self, label: Tensor, distance: np.floating) -> None:
        self.label = label
        self.negative_distance = -distance

    def __lt__(self, other: "_Image") -> bool:
        return bool(self.negative_distance < other.negative_distance)


def original_nearest(
    batches: Iterable[Batch], prototypes: Tensor, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and distances of the k images nearest to each prototype, nearest first: two [P, k]."""
    heaps: list[list[_Image]] = [[] for _ in range(len(prototypes))]
    for batch in batches:
        with torch.no_grad():
            features = batch.images.to(prototypes.device)
            distances = original_distance_map(features, prototypes).cpu().numpy().copy()
        for row, distance_map in enumerate(distances):
            for j in range(len(heaps)):
                nearest = np.amin(distance_map[j])
                image = _Image(batch.labels[row], nearest)
                if len(heaps[j]) < k:
                    heapq.heappush(heaps[j], image)
                else:
                    heapq.heappushpop(heaps[j], image)
    found = [sorted(heap)[::-1] for heap in heaps]
    labels = np.array([[int(image.label) for image in images] for images in found])
    return labels, np.array([[-image.negative_distance for image in images] for images in found])


def cabrnet_nearest(
    batches: Iterable[Batch], prototypes: Tensor, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same by the rules of CaBRNet: a short list for each prototype, sorted for each image."""
    lists: list[list[dict[str, float]]] = [[] for _ in range(len(prototypes))]
    for batch in batches:
        with torch.no_grad():
            distances = original_distance_map(batch.images.to(prototypes.device), prototypes)
            least = distances.flatten(2).min(dim=2).values
        for row, label in enumerate(batch.labels):
            for j in range(len(lists)):
                if len(lists[j]) < k:
                    lists[j].append({"distance": least[row, j].item(), "label": label.item()})
                elif least[row, j].item() < lists[j][-1]["distance"]:
                    lists[j][-1] = {"distance": least[row, j].item(), "label": label.item()}
                lists[j] = sorted(lists[j], key=lambda image: image["distance"])
    labels = np.array([[image["label"] for image in images] for images in lists])
    return labels, np.array([[image["distance"] for image in images] for images in lists])


def original_prune(labels: np.ndarray, class_identity: Tensor, threshold: int) -> np.ndarray:
    """The prototypes that go: fewer than `threshold` of the nearest images have their class."""
    own = torch.argmax(class_identity, dim=1).numpy()
    return np.flatnonzero((labels == own[:, None]).sum(1) < threshold)
