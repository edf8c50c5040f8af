"""Random states of all ranks as tensors, so that a checkpoint can hold them.

Order and augmentation of the images do not depend on them (they are keyed by seed, epoch and
image); what does is a network with dropout, or a ``perturb`` function that draws random numbers.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from protofast.scan import gather_ranks


def seed_everything(seed: int, rank: int) -> None:
    """Seeds Python, NumPy and PyTorch; every rank differently."""
    random.seed(f"{seed}/{rank}")
    # The legacy generator takes 32 bits; the seed may have more.
    np.random.seed((seed * 1_000_003 + rank) % 2**32)
    torch.manual_seed(((seed << 16) + rank) % 2**63)


def capture_random_states(fabric: Fabric) -> dict[str, Tensor]:
    """The states of all ranks, [world, ...] each. All ranks must call it."""
    _, python, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert name == "MT19937"
    assert isinstance(keys, np.ndarray)
    own = {
        "random.torch": torch.get_rng_state(),
        "random.python": torch.tensor(python, dtype=torch.int64),
        "random.python_gauss": torch.tensor([gauss is not None, gauss or 0.0]).double(),
        "random.numpy": torch.from_numpy(keys.astype(np.int64)),
        "random.numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    if fabric.device.type == "cuda":
        own["random.cuda"] = torch.cuda.get_rng_state(fabric.device)
    # The backend of the ranks may only know the device's own memory.
    return {key: gather_ranks(state.to(fabric.device)).cpu() for key, state in own.items()}


def restore_random_states(fabric: Fabric, states: dict[str, Tensor]) -> bool:
    """Puts this rank's states back; False if they were saved by another number of ranks."""
    if len(states["random.torch"]) != fabric.world_size:
        return False
    own = {key: states[key][fabric.global_rank].contiguous() for key in states}
    torch.set_rng_state(own["random.torch"])
    has_gauss, gauss = own["random.python_gauss"].tolist()
    python = tuple(own["random.python"].tolist())
    random.setstate((3, python, gauss if has_gauss else None))
    position, cached_one, cached = own["random.numpy_rest"].tolist()
    keys = own["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(cached_one), cached))
    if fabric.device.type == "cuda" and "random.cuda" in own:
        torch.cuda.set_rng_state(own["random.cuda"], fabric.device)
    return True
