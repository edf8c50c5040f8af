"""One image attacked: everything that a table or a figure says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from protofast.attacks.objectives import frozen
from protofast.audits.cells import pixels_of_cells
from protofast.audits.head_on_stomach_attack import (
    EPSILON,
    Noise,
    head_on_stomach,
    prototype_maps,
    source_cells,
)
from protofast.errors import DataError
from protofast.models import Output, PrototypeModel

Cell = tuple[int, int]  # row, column


@dataclass(frozen=True)
class State:
    """An image as the model sees it, before or after the attack.

    Attributes:
        image: [channels, S, T] in [0, 1].
        map: [H, W], the prototype's similarity to every patch.
        place: The cell where it is largest.
        similarity: The largest, over the whole map.
        in_target: The largest in the target cells.
        in_source: The largest in the source cells.
        rank: How many prototypes are activated more, plus 1.
        predicted: The class.
        probability: Of that class.
    """

    image: Tensor
    map: Tensor
    place: Cell
    similarity: float
    in_target: float
    in_source: float
    rank: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class AttackedImage:
    """One Head-on-Stomach attack, on the CPU.

    Attributes:
        prototype: Which one was to be moved.
        prototype_class: The class it belongs to, or None.
        sources: bool [H, W], the cells where it was.
        targets: bool [H, W], the cells where it was sent.
        epsilon: The largest change that was allowed.
        clean: Before.
        attacked: After.
    """

    prototype: int
    prototype_class: int | None
    sources: Tensor
    targets: Tensor
    epsilon: float
    clean: State
    attacked: State

    @property
    def moved(self) -> bool:
        """Whether the prototype is now most similar in the target, and nowhere else as much."""
        elsewhere = self.attacked.map[~self.targets]
        return elsewhere.numel() == 0 or self.attacked.in_target > float(elsewhere.max())


def attack_image(
    model: PrototypeModel,
    image: Tensor,
    *,
    prototype: int | None = None,
    targets: Tensor | None = None,
    noise_at_source: bool = False,
    **noise: Unpack[Noise],
) -> AttackedImage:
    """Move a prototype on one image.

    Args:
        model: Any prototype model.
        image: [channels, S, T], uint8 or floating point in [0, 1].
        prototype: Which; None for the most activated one.
        targets: bool [H, W], where to; None for the cell farthest from where it is.
        noise_at_source: Allow noise in the pixels of the source cells too.
        noise: `epsilon`, `step_size`, `steps`, `random_start`, `restarts` and `seed` of
            `head_on_stomach`, with the same defaults.

    Raises:
        ValueError: There is no such prototype, or the targets are not of the model's grid.
        DataError: The prototype has no place on this image: its map is flat, or not finite.
    """
    device = model.prototypes.device
    pixels = image.unsqueeze(0).to(device)
    pixels = pixels.float().div(255) if pixels.dtype == torch.uint8 else pixels
    with frozen(model), torch.no_grad():
        before = model(pixels)
        if prototype is None:
            prototype = int(before.activations[0].argmax())
        if not 0 <= prototype < model.num_prototypes:
            raise ValueError(
                f"prototype {prototype}: the model has prototypes 0 to {model.num_prototypes - 1}"
            )
        chosen = torch.tensor([prototype], device=device)
        maps = prototype_maps(model, pixels, chosen)
    _check_place(maps[0], prototype)
    size = (pixels.shape[2], pixels.shape[3])
    sources = source_cells(maps, size)
    targets = farthest_cell(maps[0], sources[0]) if targets is None else targets.to(device)
    if targets.shape != sources.shape[1:] or targets.dtype != torch.bool:
        raise ValueError(
            f"targets must be bool {list(sources.shape[1:])}, a cell of the model's grid each; got "
            f"{targets.dtype} {list(targets.shape)}"
        )
    noisy = sources | targets if noise_at_source else targets.unsqueeze(0)
    moved = head_on_stomach(
        model,
        pixels,
        chosen,
        targets.unsqueeze(0),
        sources=sources,
        pixels=pixels_of_cells(noisy, size),
        **noise,
    )
    owner = model.prototype_class
    cells = sources[0].cpu(), targets.cpu()
    return AttackedImage(
        prototype=prototype,
        prototype_class=None if owner is None else int(owner[prototype]),
        sources=cells[0],
        targets=cells[1],
        epsilon=noise.get("epsilon", EPSILON),
        clean=_state(pixels, maps, before, prototype, *cells),
        attacked=_state(moved.images, moved.maps, moved.output, prototype, *cells),
    )


def farthest_cell(similarity_map: Tensor, sources: Tensor) -> Tensor:
    """The cell farthest from a map's largest similarity and outside the sources: bool [H, W].

    Of several the first in row-major order; where the sources cover the grid, one of them.
    """
    row, column = divmod(int(similarity_map.argmax()), similarity_map.shape[1])
    rows = torch.arange(similarity_map.shape[0], device=sources.device) - row
    columns = torch.arange(similarity_map.shape[1], device=sources.device) - column
    way = rows.square()[:, None] + columns.square()  # [H, W]
    if not bool(sources.all()):
        way = way.masked_fill(sources, -1)
    cells = torch.zeros_like(sources)
    cells.view(-1)[way.argmax()] = True
    return cells


def _state(
    images: Tensor,
    maps: Tensor,
    output: Output,
    prototype: int,
    sources: Tensor,
    targets: Tensor,
) -> State:
    similarity_map, activations = maps[0].cpu(), output.activations[0]
    predicted = int(output.logits[0].argmax())
    return State(
        image=images[0].cpu(),
        map=similarity_map,
        place=divmod(int(similarity_map.argmax()), similarity_map.shape[1]),
        similarity=float(similarity_map.max()),
        in_target=float(similarity_map[targets].max()),
        in_source=float(similarity_map[sources].max()),
        rank=int((activations > activations[prototype]).sum()) + 1,
        predicted=predicted,
        probability=float(output.logits[0].double().softmax(dim=0)[predicted]),
    )


def _check_place(similarity_map: Tensor, prototype: int) -> None:
    if not bool(similarity_map.isfinite().all()):
        raise DataError(
            f"the similarities of prototype {prototype} on this image are not finite; look at its "
            "pixels, and at the model's weights (a training that diverged)"
        )
    if bool((similarity_map == similarity_map.flatten()[0]).all()):
        raise DataError(
            f"prototype {prototype} is equally similar to every place of this image, so there is "
            "no place to move it from; choose another prototype"
        )
