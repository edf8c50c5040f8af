"""The success rate of Head on Stomach in the structure of its published code.

Written from that code (fanconic/this-does-not-look-like-that, Hoffmann et al. 2021): one image at a
time is looked at, and its five strongest prototypes are attacked in turn. Every look passes the
image through the network twice, once for the logits and once for the maps of all prototypes; the
objective is gathered cell by cell, and boxes and decisions are computed on the CPU. The pictures
that the published code writes on the way are left out, which makes this baseline faster than it.

What the noise starts from is given, so that both sides can start from the same.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from baselines import EPS, original_distance_map
from torch import Tensor
from torch.nn import functional as F

from protofast import ProtoPNet

Array = np.ndarray[Any, Any]
Cells = list[tuple[int, int]]


class Look(NamedTuple):
    """logits [1, C]; activations [1, P]; maps [1, P, H, W], similarities."""

    logits: Tensor
    activations: Tensor
    maps: Tensor


def look(model: ProtoPNet, image: Tensor) -> Look:
    """`forward` for the logits, then `push_forward` for the maps; the network runs in both."""
    distances = original_distance_map(model.features(image), model.prototypes)
    least = -F.max_pool2d(-distances, kernel_size=distances.shape[2:]).flatten(1)
    activations = _similarity(least)
    logits = F.linear(activations, model.last_layer.weight)
    again = original_distance_map(model.features(image), model.prototypes)
    return Look(logits, activations, _similarity(again))


def _similarity(distances: Tensor) -> Tensor:
    return torch.log((distances + 1) / (distances + EPS))


def original_success_rate(
    model: ProtoPNet,
    images: Tensor,
    noise: Tensor,
    *,
    prototypes: int,
    epsilon: float,
    step_size: float,
    steps: int,
) -> list[dict[str, Any]]:
    """One row for each image; see the module's docstring.

    Args:
        model: in eval mode.
        images: [N, channels, S, S] in [0, 1].
        noise: [N, channels, S, S], within epsilon: the random starts.
        prototypes: how many are attacked at most.
        epsilon: see `pgd`, as for the others.
        step_size: see there.
        steps: see there.
    """
    rows = []
    for n in range(len(images)):
        image = images[n : n + 1]
        seen = look(model, image)
        order = torch.sort(seen.activations[0])[1]
        row: dict[str, Any] = {"image": n, "success": False, "ranks_tried": 0}
        try:
            for rank in range(1, prototypes + 1):
                number = int(order[-rank])
                sources = source_cells(_numpy(seen.maps[0, number]), image.shape[2])
                grid = seen.maps.shape[2]
                every = itertools.product(range(grid), range(grid))
                wanted = sorted(set(every) - set(sources))
                corners, targets = bounding_rectangle(wanted)  # raises where nothing is wanted
                attacked = attack(
                    model,
                    image,
                    noise[n : n + 1],
                    number,
                    corners,
                    targets,
                    epsilon=epsilon,
                    step_size=step_size,
                    steps=steps,
                )
                after = look(model, attacked)
                found = after.maps[0, number]
                inside = torch.zeros(len(sources), dtype=found.dtype, device=found.device)
                for i, cell in enumerate(sources):
                    inside[i] = found[cell]
                row.update(
                    ranks_tried=rank,
                    prototype=number,
                    class_after=int(after.logits.argmax()),
                    source_after=inside.max().item(),
                    largest_after=found.max().item(),
                )
                if torch.max(found) > torch.max(inside):
                    row["success"] = True
                    break
        except ValueError:
            row = {"image": n, "skipped": True, "ranks_tried": row["ranks_tried"]}
        rows.append(row)
    return rows


def attack(
    model: ProtoPNet,
    image: Tensor,
    noise: Tensor,
    prototype: int,
    corners: tuple[int, int, int, int],
    targets: Cells,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
) -> Tensor:
    """The attacked image; parameters ask for no gradients meanwhile."""
    model.requires_grad_(False)
    score(model, image, prototype, targets, None)
    pattern = _numpy(look(model, image).maps[0, prototype])
    sources = source_cells(pattern, image.shape[2])
    cell = image.shape[2] // pattern.shape[0]
    top, bottom, left, right = (cell * corner for corner in corners)
    mask = torch.zeros_like(image)
    mask[:, :, top:bottom, left:right] = 1
    attacked = torch.clamp(image + noise, 0, 1)
    for _ in range(steps):
        attacked.requires_grad = True
        value = score(model, attacked, prototype, targets, sources)
        (-value).backward(retain_graph=True)
        assert attacked.grad is not None
        gradient = attacked.grad.detach().sign()  # of minus the objective
        attacked = attacked - step_size * gradient * mask
        attacked = image + torch.clamp(attacked - image, min=-epsilon, max=epsilon) * mask
        attacked = torch.clamp(attacked.detach(), 0, 1)
    score(model, attacked, prototype, targets, None).item()
    score(model, attacked, prototype, targets, None)
    model.requires_grad_(True)
    return attacked


def score(
    model: ProtoPNet, image: Tensor, prototype: int, targets: Cells, sources: Cells | None
) -> Tensor:
    """The objective, gathered cell by cell."""
    g = look(model, image).maps[0, prototype]
    of_sources = g.clone()
    wanted = torch.zeros(len(targets), dtype=g.dtype, device=g.device)
    for i, cell in enumerate(targets):
        wanted[i] = g[cell]
        of_sources[cell] = 0
    if sources is None:
        return torch.mean(wanted)
    left = torch.zeros(len(sources), dtype=g.dtype, device=g.device)
    for i, cell in enumerate(sources):
        left[i] = of_sources[cell]
    return torch.mean(wanted) - torch.mean(left)


def source_cells(pattern: Array, size: int) -> Cells:
    """The cells of the 95th-percentile box, ends included."""
    y0, y1, x0, x1 = high_activation_crop(_enlarged(pattern, size))
    cell, grid = size // pattern.shape[0], pattern.shape[0]
    rows = range(y0 // cell, min(y1 // cell + 1, grid))
    return list(itertools.product(rows, range(x0 // cell, min(x1 // cell + 1, grid))))


def high_activation_crop(large: Array) -> tuple[int, int, int, int]:
    """Bounding rectangle of all pixels at or above the 95th percentile."""
    mask = np.ones(large.shape)
    mask[large < np.percentile(large, 95)] = 0
    edges = []
    for lines in (mask, mask.T):
        first, last = 0, 0
        for i in range(len(lines)):
            if np.amax(lines[i]) > 0.5:
                first = i
                break
        for i in reversed(range(len(lines))):
            if np.amax(lines[i]) > 0.5:
                last = i
                break
        edges += [first, last + 1]
    return edges[0], edges[1], edges[2], edges[3]


def bounding_rectangle(cells: Cells) -> tuple[tuple[int, int, int, int], Cells]:
    """Corners (top, bottom, left, right), ends excluded, and all cells inside."""
    rows, columns = [cell[0] for cell in cells], [cell[1] for cell in cells]
    top, left = int(np.min(rows)), int(np.min(columns))
    bottom, right = int(np.max(rows)) + 1, int(np.max(columns)) + 1
    inside = itertools.product(range(top, bottom), range(left, right))
    return (top, bottom, left, right), list(inside)


def _enlarged(pattern: Array, size: int) -> Array:
    """As OpenCV's INTER_CUBIC enlarges."""
    large = F.interpolate(
        torch.from_numpy(pattern).double()[None, None],
        size=(size, size),
        mode="bicubic",
        align_corners=False,
    )
    return large[0, 0].float().numpy()


def _numpy(pattern: Tensor) -> Array:
    return pattern.detach().cpu().numpy()
