"""The alignment step: does a prototype still find its part when all else is covered?

The alignment loss of Sacha et al. 2024 (2308.08162). A first pass gives the similarity maps of
chosen prototypes; a second one sees, for each of them, the image with all but the map's highest
tenth covered. Where the network looks where its map says, the maps agree.

N images, K chosen prototypes of each, H x W grid, S x T image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protofast.losses import alignment_loss
from protofast.models import PrototypeModel
from protofast.ops import ViewMemory, masked_view_out

__all__ = ["AlignmentStep", "ViewMemory", "alignment_step", "mask_weights"]


class AlignmentStep(NamedTuple):
    """What `alignment_step` returns.

    loss: a scalar.
    first_maps: [N, K, H, W], similarity of the chosen prototypes on the images.
    second_maps: [N, K, H, W], the same on the views that their maps left.
    masks: bool [N, K, S, T], which pixels each view shows.
    """

    loss: Tensor
    first_maps: Tensor
    second_maps: Tensor
    masks: Tensor


def alignment_step(
    model: PrototypeModel,
    images: Tensor,
    index: Tensor,
    *,
    features: Tensor | None = None,
    quantile: float = 0.9,
    difference: str = "l2",
    weigh_by_mask: bool = False,
    detach_target: bool = True,
    update_statistics: bool = True,
    chunk: int | None = None,
    memory: ViewMemory | None = None,
) -> AlignmentStep:
    """Compare the maps of chosen prototypes with their maps on the covered images.

    The second pass runs on images x prototypes at once, or on `chunk` of these at a time. Gradients
    reach the model through it and, without `detach_target`, through the first pass too; the covered
    images are constants, as in the released code.

    Args:
        model: any prototype model, in the mode it shall run in.
        images: [N, channels, S, T] in [0, 1].
        index: the prototypes chosen for each image, int64 [N, K]. The released code chooses one of
            the image's own class at random.
        features: latent maps [N, D, H, W] of the first pass, where the caller has them already:
            then only the second pass runs.
        quantile: of the map, above which the image is shown. The paper takes 0.9, the released code
            draws one from 0.5 ... 0.98 for each batch.
        difference: `l2` or `l1`; see `losses.alignment_loss`.
        weigh_by_mask: count cells by how much of them is shown (as in the released code); else all
            cells equally.
        detach_target: let the gradient flow through the second pass alone.
        update_statistics: whether the second pass counts in the running statistics of normalising
            layers (as in the released code). In train mode batch norm normalises by its own batch
            in any case; `chunk` decides how large that is.
        chunk: views in one forward pass at most; None for all.
        memory: where views lie from step to step; take the next step after the backward of this
            one. None takes fresh memory.

    Returns:
        AlignmentStep(loss, first_maps, second_maps, masks).

    Raises:
        TypeError, ValueError: shapes, dtypes or options do not fit.
    """
    _check(index, images, chunk)
    if features is None:
        features = model.features(images)
    first_maps = model.similarity_map(features, index)
    if index.numel() == 0:  # nothing chosen; not every backbone takes an empty batch
        masks = images.new_empty((*index.shape, *images.shape[2:]), dtype=torch.bool)
        return AlignmentStep(first_maps.sum(), first_maps, first_maps, masks)
    masks = torch.empty((*index.shape, *images.shape[2:]), dtype=torch.bool, device=images.device)
    with _running_statistics(model, update_statistics):
        parts = [
            model.similarity_map(model.features(views), some.reshape(-1, 1)).squeeze(1)
            for views, some in _views(
                images.detach(),
                first_maps.detach(),
                index,
                masks,
                quantile=quantile,
                fill=model.mean.detach(),
                chunk=index.numel() if chunk is None else chunk,
                memory=memory,
            )
        ]  # [n*k, H, W] each
    second_maps = torch.cat(parts).unflatten(0, index.shape)  # [N, K, H, W]
    loss = alignment_loss(
        first_maps.detach() if detach_target else first_maps,
        second_maps,
        difference=difference,
        weights=mask_weights(masks, first_maps.shape[2:]) if weigh_by_mask else None,
    )
    return AlignmentStep(loss, first_maps, second_maps, masks)


def mask_weights(masks: Tensor, size: tuple[int, ...]) -> Tensor:
    """How much of each cell is shown: bool [N, K, S, T] -> float32 [N, K, H, W] for size (H, W).

    As in the released code: resized bilinearly without smoothing, so each cell looks at four pixels
    around its centre.
    """
    return F.interpolate(masks.float(), size=size, mode="bilinear", align_corners=False)


def _views(
    images: Tensor,
    maps: Tensor,
    index: Tensor,
    masks: Tensor,
    *,
    quantile: float,
    fill: Tensor,
    chunk: int,
    memory: ViewMemory | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views [n*k, channels, S, T] and their prototypes [n, k], block by block; fills `masks`.

    Without gradients one block's memory serves all of them; with gradients each block keeps its own
    until the backward.
    """
    memory = ViewMemory() if memory is None else memory
    keep = torch.is_grad_enabled()
    for number, (some, of_these) in enumerate(_blocks(index.shape[0], index.shape[1], chunk)):
        chosen = index[some, of_these]
        views = memory.take(images, chosen.numel(), slot=number if keep else 0)
        block = masks[some, of_these].view(-1, *masks.shape[2:])  # [n*k, S, T], no copy
        masked_view_out(
            images[some], maps[some, of_these], views, block, quantile=quantile, fill=fill
        )
        yield views, chosen


def _blocks(images: int, each: int, chunk: int) -> Iterator[tuple[slice, slice]]:
    """Divide [N, K] into blocks of at most `chunk`: whole images, or parts of one.

    Blocks follow one another in row-major order, and each lies in memory in one piece.
    """
    if each <= chunk:
        step = chunk // each
        for first in range(0, images, step):
            yield slice(first, min(images, first + step)), slice(0, each)
        return
    for image in range(images):
        for first in range(0, each, chunk):
            yield slice(image, image + 1), slice(first, min(each, first + chunk))


@contextmanager
def _running_statistics(model: nn.Module, update: bool) -> Iterator[None]:
    """While this holds, forward passes leave the running statistics alone unless `update`.

    They go to copies: the buffers themselves are not written to, so that a backward of an earlier
    pass still finds them as they were.
    """
    held: list[tuple[nn.Module, str, Tensor]] = []
    if not update:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.training:
                for name, buffer in module.named_buffers(recurse=False):
                    held.append((module, name, buffer))
                    setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in held:
            setattr(module, name, buffer)


def _check(index: Tensor, images: Tensor, chunk: int | None) -> None:
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index must be an int64 tensor; got {got}")
    if index.dim() != 2 or index.shape[0] != images.shape[0]:
        raise ValueError(
            f"index must be [N, K] with N = {images.shape[0]} as in images {list(images.shape)}; "
            f"got {list(index.shape)}"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1; got {chunk}")
