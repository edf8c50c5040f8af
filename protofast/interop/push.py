"""`push_prototypes` with the signature, the rules and the files of the original push.py."""

import os
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from protofast.interop.contract import prototype_classes
from protofast.interop.push_files import PushFiles
from protofast.interop.search import PushBatch, Searched, patches_at, push_set, searched
from protofast.ops import nearest_patch
from protofast.projection import Projection


@torch.no_grad()
def push_prototypes(
    dataloader: Iterable[Any],
    prototype_network_parallel: nn.Module,
    class_specific: bool = True,
    preprocess_input_function: Callable[[Tensor], Tensor] | None = None,
    prototype_layer_stride: int = 1,
    root_dir_for_saving_prototypes: str | os.PathLike[str] | None = None,
    epoch_number: int | None = None,
    prototype_img_filename_prefix: str | None = None,
    prototype_self_act_filename_prefix: str | None = None,
    proto_bound_boxes_filename_prefix: str | None = None,
    save_prototype_class_identity: bool = True,
    log: Callable[[str], object] = print,
    prototype_activation_function_in_numpy: Callable[[Any], Any] | None = None,
    *,
    zero_empty_classes: bool = False,
) -> Projection:
    """Set every prototype to the nearest patch of the push set; signature of the original push.py.

    The same patch is chosen: of the images of the prototype's class (of all images without
    `class_specific`) the one with the strictly smallest distance, the earliest image and the first
    location in row-major order among equals. Distances are compared in float64. Like the original,
    it leaves the model in eval mode and writes into `prototype_vectors.data`.

    Two things differ. A class without any image keeps its prototypes and warns, unless
    `zero_empty_classes` asks for the original's zero vectors. The image numbers in the files count
    images, so that they hold for batches of uneven size too.

    Args:
        dataloader: batches (images, labels), images un-normalised in [0, 1], not shuffled.
        prototype_network_parallel: PPNet or TESNet, accelerated or not, bare or in a wrapper.
        class_specific: only look at images of the prototype's own class.
        preprocess_input_function: normalises a batch of images.
        prototype_layer_stride: 1; the original's distances have no other.
        root_dir_for_saving_prototypes: where files go (in `epoch-<n>` if there is a number).
        epoch_number: for the names of files.
        prototype_img_filename_prefix: writes pictures; needs Pillow.
        prototype_self_act_filename_prefix: writes each prototype's map on its own image, .npy.
        proto_bound_boxes_filename_prefix: writes the boxes, .npy int [P, 6]: image, rows from and
            to, columns from and to, class; -1 where there is none.
        save_prototype_class_identity: whether the boxes have their sixth column.
        log: takes lines of text.
        prototype_activation_function_in_numpy: for the maps where the activation is a function;
            the model's own, in torch, is taken without it.
        zero_empty_classes: see above.

    Returns:
        What became of each prototype (the original returns None).

    Raises:
        TypeError, ValueError: the model or an argument does not fit.
        DataError: an image gives features that are not finite; the model is left as it was.
    """
    if prototype_layer_stride != 1:
        raise ValueError(
            "prototype_layer_stride must be 1, as the network's distances have it; got "
            f"{prototype_layer_stride}"
        )
    log("\tpush")
    start = time.time()
    search = searched(prototype_network_parallel)
    network = search.network
    classes = prototype_classes(network).to(search.prototypes.device)  # [P]
    best = _Best(search, classes if class_specific else None)
    files = None
    if root_dir_for_saving_prototypes is not None:
        files = PushFiles(
            search,
            root_dir_for_saving_prototypes,
            epoch_number,
            prototype_img_filename_prefix,
            prototype_self_act_filename_prefix,
            proto_bound_boxes_filename_prefix,
            save_prototype_class_identity,
            prototype_activation_function_in_numpy,
        )
    for batch in push_set(network, dataloader, preprocess_input_function):
        better, rows, locations = best.update(batch)
        if files is not None:
            files.update(batch, better, rows, locations)
    if files is not None:
        files.write_boxes()
    log("\tExecuting push ...")
    projection = _execute(network, best, classes if class_specific else None, zero_empty_classes)
    log(f"\tpush time: \t{time.time() - start}")
    return projection


class _Best:
    """The nearest patch of each prototype so far."""

    def __init__(self, search: Searched, classes: Tensor | None) -> None:
        self.search = search
        count, device = len(search.prototypes), search.prototypes.device
        self.own = None if classes is None else _own_prototypes(classes, search.network.num_classes)
        self.distances = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
        self.images = torch.full((count,), -1, device=device)
        self.locations = torch.full((count,), -1, device=device)
        self.patches = torch.zeros_like(search.prototypes)

    def update(self, batch: PushBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Take over what is strictly nearer; those prototypes, their rows in batch, locations."""
        distances, locations = self._in_batch(batch)  # [N, P]
        least, rows = distances.min(dim=0)  # the first of equals
        better = (least < self.distances).nonzero()[:, 0]
        rows = rows[better]
        places = locations[rows, better]
        self.distances[better] = least[better]
        self.images[better] = batch.start + rows
        self.locations[better] = places
        window = self.search.prototypes.shape[2:]
        self.patches[better] = patches_at(batch.features, rows, places, window)
        return better, rows, places

    def _in_batch(self, batch: PushBatch) -> tuple[Tensor, Tensor]:
        """Least distance and its location, [N, P]; infinite for prototypes of other classes."""
        search = self.search
        count, size = len(search.prototypes), len(batch.features)
        if self.own is None:
            found = nearest_patch(
                batch.features, search.prototypes, metric=search.metric, similarity="linear"
            )
            return found.distances, found.locations
        index = self.own[batch.labels]  # [N, K], padded with P
        maps = search.maps(batch.features, index.clamp(max=count - 1)).flatten(2)
        least, places = maps.min(dim=2)  # [N, K]
        distances = least.new_full((size, count + 1), torch.inf).scatter_(1, index, least)
        locations = places.new_zeros((size, count + 1)).scatter_(1, index, places)
        return distances[:, :count], locations[:, :count]


def _own_prototypes(classes: Tensor, num_classes: int) -> Tensor:
    """The prototypes of each class, [C, K], padded with P; from the class of each prototype."""
    counts = classes.bincount(minlength=num_classes)  # [C]
    width = max(1, int(counts.max()))
    table = classes.new_full((num_classes, width), len(classes))
    order = classes.argsort(stable=True)
    first = counts.cumsum(0) - counts  # [C]
    place = torch.arange(len(classes), device=classes.device) - first[classes[order]]
    table[classes[order], place] = order
    return table


def _execute(
    network: Any, best: _Best, classes: Tensor | None, zero_empty_classes: bool
) -> Projection:
    """Write the patches into the network."""
    prototypes = network.prototype_vectors.data
    found = best.images >= 0  # [P]
    kept = torch.zeros_like(best.patches) if zero_empty_classes else prototypes.double()
    patches = torch.where(found.view(-1, 1, 1, 1), best.patches, kept)
    moved = (patches - prototypes).square().flatten(1).sum(dim=1).sqrt()
    prototypes.copy_(patches)
    empty: tuple[int, ...] = ()
    if not bool(found.all()):
        empty = () if classes is None else tuple(classes[~found].unique().tolist())
        fate = "become zero" if zero_empty_classes else "stay as they are"
        of = f" of class {', '.join(str(label) for label in empty)}" if empty else ""
        warnings.warn(
            f"the push set has no image{of}: {int((~found).sum())} prototype(s) {fate}",
            UserWarning,
            stacklevel=4,
        )
    return Projection(
        torch.where(found, best.distances, torch.nan).cpu(),
        best.images.cpu(),
        best.locations.cpu(),
        moved.cpu(),
        empty,
    )
