"""`prune_prototypes` with the signature, the rules and the files of the original prune.py."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protofast.errors import SettingsError
from protofast.interop.contract import prototype_classes
from protofast.interop.heaps import Heaps
from protofast.interop.search import PushBatch, Searched, push_set, searched
from protofast.ops import nearest_patch, nearest_patch_within

_MOST = 3  # above one third of all prototypes, computing all of them is no slower
_COPIED = (
    "prototype-img{}.png",
    "prototype-img-original{}.png",
    "prototype-img-original_with_self_act{}.png",
    "prototype-self-act{}.npy",
)


@torch.no_grad()
def prune_prototypes(
    dataloader: Iterable[Any],
    prototype_network_parallel: nn.Module,
    k: int,
    prune_threshold: int,
    preprocess_input_function: Callable[[Tensor], Tensor] | None,
    original_model_dir: str | os.PathLike[str],
    epoch_number: int,
    log: Callable[[str], object] = print,
    copy_prototype_imgs: bool = True,
) -> np.ndarray[Any, Any]:
    """Remove the prototypes whose nearest images are of other classes; signature as prune.py's.

    A prototype goes if fewer than `prune_threshold` of its `k` nearest images (each by its nearest
    patch) have its class. Distances are compared in float64; equal ones at the k-th place are kept
    or dropped as the original's heap does it. The model is left in eval mode, and pruned by its own
    `prune_prototypes`. Writes `prune_info.npy` and, with `copy_prototype_imgs`, the remaining
    prototypes' files under their new numbers, into `pruned_prototypes_epoch<n>_k<k>_pt<threshold>`.

    Args:
        dataloader: batches (images, labels), images un-normalised in [0, 1].
        prototype_network_parallel: PPNet, accelerated or not, bare or in a wrapper.
        k: how many images to look at.
        prune_threshold: how many of them must have the prototype's class.
        preprocess_input_function: normalises a batch of images, or None.
        original_model_dir: the folder of the run.
        epoch_number: of the push whose files are copied.
        log: takes lines of text.
        copy_prototype_imgs: needs the files that `push_prototypes` wrote with the original's
            prefixes, in `img/epoch-<n>`.

    Returns:
        int64 [removed, 2]: prototype and class, as in `prune_info.npy`.

    Raises:
        TypeError, ValueError: the model or an argument does not fit.
        SettingsError: no prototype would be left; the model stays as it was.
        DataError: an image gives features that are not finite.
        FileNotFoundError: a file to be copied is not there; the model stays as it was.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    search = searched(prototype_network_parallel)
    network = search.network
    if not callable(getattr(network, "prune_prototypes", None)):
        raise TypeError(f"{type(network).__name__} has no method prune_prototypes")
    classes = prototype_classes(network).numpy()  # [P]
    log("find nearest patches")
    heaps = Heaps(len(classes), k)
    for batch in push_set(network, dataloader, preprocess_input_function):
        heaps.update(_least_distances(search, batch, heaps).cpu().numpy(), batch.labels.tolist())
    counts = (heaps.labels == classes[:, None]).sum(axis=1)  # [P]
    removed, kept = (
        np.flatnonzero(counts < prune_threshold),
        np.flatnonzero(counts >= prune_threshold),
    )
    log(f"k = {k}, prune_threshold = {prune_threshold}")
    log(f"{len(removed)} prototypes will be pruned")
    if len(kept) == 0:
        raise SettingsError(
            f"pruning would remove all {len(classes)} prototypes: none has {prune_threshold} "
            f"images of its class among its {k} nearest; lower prune_threshold, or push first"
        )
    info = np.stack([removed, classes[removed]], axis=1)
    original = Path(original_model_dir)
    folder = original / f"pruned_prototypes_epoch{epoch_number}_k{k}_pt{prune_threshold}"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "prune_info.npy", info)
    if copy_prototype_imgs:
        _copy_files(original, folder, epoch_number, kept)
    network.prune_prototypes(removed.tolist())
    return info


def _least_distances(search: Searched, batch: PushBatch, heaps: Heaps) -> Tensor:
    """Float64 distances [N, P] of each image's nearest patch; infinite where it cannot matter.

    A float32 pass finds the pairs that may enter a heap, with room for its rounding; only those are
    computed in float64.
    """
    prototypes, metric = search.prototypes, search.metric
    worst = torch.from_numpy(heaps.worst()).to(prototypes.device)  # [P]

    def all_distances() -> Tensor:
        features, compared = batch.features.double(), prototypes.double()
        found = nearest_patch(features, compared, metric=metric, similarity="linear")
        return found.distances  # [N, P]

    if not bool(worst.isfinite().all()):  # a heap that is not full takes everything
        return all_distances()
    window = prototypes.shape[2] * prototypes.shape[3]
    scale = batch.features.square().sum(dim=1).amax() * window
    scale = scale + prototypes.square().flatten(1).sum(dim=1).amax()
    # Ten times the bounds that the operator keeps: 1e-5 of the norms for the patch it selects.
    room = 1e-4 * (scale + worst.abs())
    near = nearest_patch_within(
        batch.features.float(), prototypes.float(), worst + room, metric=metric
    )
    possible = torch.zeros(len(batch.features), len(worst), dtype=torch.bool, device=worst.device)
    possible[near.images, near.prototypes] = True
    if len(near.images) > possible.numel() // _MOST:
        return all_distances()
    distances = torch.full(possible.shape, torch.inf, dtype=torch.float64, device=worst.device)
    for row, some in enumerate(possible):  # images have very different numbers of such pairs
        index = some.nonzero().t()  # [1, K]
        if index.shape[1]:
            maps = search.maps(batch.features[row : row + 1], index)  # [1, K, H', W']
            distances[row, index[0]] = maps[0].flatten(1).amin(dim=1)
    return distances


def _copy_files(original: Path, folder: Path, epoch: int, kept: np.ndarray[Any, Any]) -> None:
    source, target = original / "img" / f"epoch-{epoch}", folder / "img" / f"epoch-{epoch}"
    target.mkdir(parents=True, exist_ok=True)
    for new, old in enumerate(kept.tolist()):
        for name in _COPIED:
            shutil.copyfile(source / name.format(old), target / name.format(new))
    for name in (f"bb{epoch}.npy", f"bb-receptive_field{epoch}.npy"):
        np.save(target / name, np.load(source / name)[kept])
