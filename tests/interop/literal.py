"""The originals' push and prune, one prototype and one image at a time, in float64 (NumPy)."""

import heapq
from collections import Counter

import numpy as np


def distance_maps(features, prototypes, tesnet=False):
    """[N, D, H, W] and [P, D, h, w] -> [N, P, H', W'], float64."""
    features, prototypes = features.astype(np.float64), prototypes.astype(np.float64)
    count, _, height, width = prototypes.shape
    if tesnet:
        prototypes = prototypes / np.sqrt((prototypes**2).sum(axis=1, keepdims=True))
    rows, columns = features.shape[2] - height + 1, features.shape[3] - width + 1
    maps = np.empty((len(features), count, rows, columns))
    for y in range(rows):
        for x in range(columns):
            patches = features[:, None, :, y : y + height, x : x + width]
            values = -patches * prototypes if tesnet else (patches - prototypes) ** 2
            maps[:, :, y, x] = values.sum(axis=(2, 3, 4))
    return maps


def push(batches, prototypes, identity, class_specific=True, tesnet=False):
    """batches of (features, labels) -> (images [P], locations [P], patches [P, D, h, w])."""
    count, _, height, width = prototypes.shape
    least = np.full(count, np.inf)
    images, locations = np.full(count, -1), np.full(count, -1)
    patches = np.zeros(prototypes.shape)
    start = 0
    for features, labels in batches:
        maps = distance_maps(features, prototypes, tesnet)
        for j in range(count):
            chosen = np.arange(len(labels))
            if class_specific:
                chosen = np.flatnonzero(labels == identity[j].argmax())
            if len(chosen) == 0:
                continue
            of_j = maps[chosen][:, j]
            if of_j.min() < least[j]:
                least[j] = of_j.min()
                n, y, x = np.unravel_index(of_j.argmin(), of_j.shape)
                images[j], locations[j] = start + chosen[n], y * of_j.shape[2] + x
                patches[j] = features[chosen[n], :, y : y + height, x : x + width]
        start += len(labels)
    return images, locations, patches


class Item:
    def __init__(self, label, distance):
        self.label, self.distance = label, distance

    def __lt__(self, other):
        return -self.distance < -other.distance


def to_prune(batches, prototypes, identity, k, threshold):
    """The prototypes that go, ascending."""
    heaps = [[] for _ in prototypes]
    for features, labels in batches:
        for image, label in zip(distance_maps(features, prototypes), labels, strict=True):
            for j, heap in enumerate(heaps):
                item = Item(int(label), image[j].min())
                if len(heap) < k:
                    heapq.heappush(heap, item)
                else:
                    heapq.heappushpop(heap, item)
    return [
        j
        for j, heap in enumerate(heaps)
        if Counter(item.label for item in heap)[int(identity[j].argmax())] < threshold
    ]
