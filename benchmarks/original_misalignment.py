"""The spatial-misalignment benchmark in the structure of its published code (Sacha et al. 2024).

Written from that code (gmum/interpretability-benchmark): batches of 8 go through the network, and
the similarity maps of all prototypes come to the CPU; then one image after another is attacked,
each step passing it through the network and all prototypes, and back to the image *and* to every
parameter, as a plain `backward` does; boxes and metrics are computed image by image on the CPU.

Two things are not as in the published code, so that both sides compute the same: the objective is
the one that the paper means (the published one has no gradient and never steps), and images are
clipped to [0, 1]. `forwards=2` passes each iterate twice, once to look at it and once to go on.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from baselines import EPS, original_distance_map
from torch import Tensor, nn
from torch.nn import functional as F

from protofast import ProtoPNet

BATCH = 8
Array = np.ndarray[Any, Any]


class Wrapper(nn.Module):
    """An image with its masked pixels taken from `x` -> mean of the prototypes' largest."""

    def __init__(self, model: ProtoPNet, image: Tensor, prototypes: Array, mask: Tensor) -> None:
        super().__init__()
        self.model, self.image, self.prototypes, self.mask = model, image, prototypes, mask
        self.last: Array | None = None

    def forward(self, x: Tensor) -> Tensor:
        blended = x * self.mask + self.image * (1 - self.mask)
        maps = similarity_maps(self.model, self.model.features(blended))[:, self.prototypes]
        largest = torch.max(maps.flatten(start_dim=2), dim=-1).values
        self.last = largest[0].clone().cpu().detach().numpy()
        return torch.mean(largest)


def similarity_maps(model: ProtoPNet, features: Tensor) -> Tensor:
    """[N, P, H, W]."""
    distances = original_distance_map(features, model.prototypes)
    return torch.log((distances + 1) / (distances + EPS))


def original_benchmark(
    model: ProtoPNet,
    images: Tensor,
    labels: Sequence[int],
    start: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    forwards: int = 1,
) -> list[dict[str, Any]]:
    """One dictionary of results for each image.

    Args:
        model: in eval mode, squared L2 and the logarithm; its parameters want gradients.
        images: [N, channels, S, T] in [0, 1].
        labels: of the images.
        start: noise [N, channels, S, T] in -1 ... 1, times epsilon where each attack begins.
        epsilon: in normalised units, and so step_size.
        step_size: see there.
        steps: of the attack.
        forwards: passes of each iterate.
    """
    rows: list[dict[str, Any]] = []
    std = model.std.view(-1, 1, 1)
    for first in range(0, len(images), BATCH):
        batch, noise = images[first : first + BATCH], start[first : first + BATCH]
        predicted, maps = run_on_batch(model, batch)
        changed, chosen, boxes = [], [], []
        for n in range(len(batch)):
            prototypes = np.asarray([int(np.argmax(maps[n].reshape(len(maps[n]), -1).max(-1)))])
            box = protected_box(maps[n, prototypes[0]], batch.shape[2:])
            mask = np.ones((1, 1, *batch.shape[2:]), dtype=np.float32)
            mask[:, :, box[1] : box[3], box[0] : box[2]] = 0
            free = torch.tensor(mask, device=batch.device, dtype=batch.dtype)
            wrapper = Wrapper(model, batch[n : n + 1], prototypes, free)
            x = projected_gradient_descent(
                wrapper,
                batch[n : n + 1],
                noise[n : n + 1],
                epsilon=epsilon * std,
                step_size=step_size * std,
                steps=steps,
                forwards=forwards,
            )
            changed.append(x * free + batch[n : n + 1] * (1 - free))
            chosen.append(prototypes[0])
            boxes.append(box)
        predicted_after, maps_after = run_on_batch(model, torch.cat(changed))
        identity = model.prototype_class.cpu().numpy()
        for n, j in enumerate(chosen):
            own = set(np.flatnonzero(identity == labels[first + n]).tolist())
            found = metrics(maps[n], maps_after[n], int(j), own, batch.shape[2:])
            found |= {"predicted": int(predicted[n]), "predicted_after": int(predicted_after[n])}
            found |= {"prototype": int(j), "box": boxes[n]}
            rows.append(found)
    return rows


def run_on_batch(model: ProtoPNet, images: Tensor) -> tuple[Array, Array]:
    """Classes [N] and all maps [N, P, H, W], on the CPU."""
    with torch.no_grad():
        maps = similarity_maps(model, model.features(images))
        activations = F.max_pool2d(maps, kernel_size=maps.shape[2:]).flatten(1)
        predicted = torch.argmax(model.last_layer(activations), dim=-1)
    return predicted.cpu().detach().numpy(), maps.cpu().detach().numpy()


def projected_gradient_descent(
    wrapper: Wrapper,
    image: Tensor,
    noise: Tensor,
    *,
    epsilon: Tensor,
    step_size: Tensor,
    steps: int,
    forwards: int,
) -> Tensor:
    """The loop of the library that the published code calls, for the objective that is meant."""
    x = torch.clamp(image + noise * epsilon, 0, 1)
    wrapper(image)  # it asks for the class first
    for _ in range(steps):
        x = x.clone().detach().requires_grad_(True)
        for _ in range(forwards - 1):
            wrapper(x)
        wrapper(x).backward()
        assert x.grad is not None
        x = torch.clamp(x - step_size * torch.sign(x.grad), 0, 1)
        moved = torch.clamp(x - image, -epsilon, epsilon)
        x = torch.clamp(image + moved, 0, 1)
    return x.detach()


def protected_box(small: Array, size: Sequence[int]) -> list[int]:
    """x0, y0, x1, y1: what lies at or above the 95th percentile, and 10 pixels around it."""
    cells = torch.tensor(small, dtype=torch.float64)[None, None]
    large = F.interpolate(cells, size=tuple(size), mode="bicubic", align_corners=False)
    pixels = large[0, 0].float().numpy()
    above = pixels >= np.percentile(pixels.astype(np.float64), 95)
    rows, columns = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
    return [
        int(max(columns[0] - 10, 0)),
        int(max(rows[0] - 10, 0)),
        int(min(columns[-1] + 1 + 10, size[1])),
        int(min(rows[-1] + 1 + 10, size[0])),
    ]


def metrics(
    before: Array, after: Array, j: int, own: set[int], size: Sequence[int]
) -> dict[str, Any]:
    """PAC, PRC and PLC of one image; maps [P, H, W]."""
    largest_before = np.max(before.reshape(len(before), -1), axis=-1)
    largest_after = np.max(after.reshape(len(after), -1), axis=-1)
    others = np.asarray([i for i in range(len(before)) if i not in own])
    passed_before = int(np.sum(largest_before[others] > largest_before[j]))
    passed_after = int(np.sum(largest_after[others] > largest_after[j]))
    marked = []
    for maps in (before, after):
        cells = torch.tensor(maps[j])[None, None]
        large = F.interpolate(cells, size=tuple(size), mode="bilinear")[0, 0]
        marked.append(large > torch.quantile(large.flatten(), q=0.9, dim=-1))
    either = int(torch.sum(marked[0] | marked[1]))
    common = int(torch.sum(marked[0] & marked[1]))
    return {
        "activation_change": float(1 - largest_after[j] / largest_before[j]) * 100,
        "rank_change": passed_after - passed_before,
        "location_change": 100 * (1 - common / either) if either else 0.0,
    }
