"""Drop-in for other people's code: their networks, their checkpoints, their configuration."""

from protofast.interop.acceleration import accelerate, restore
from protofast.interop.checkpoints import Checkpoint, load_checkpoint
from protofast.interop.prune import prune_prototypes
from protofast.interop.push import push_prototypes

__all__ = [
    "Checkpoint",
    "accelerate",
    "load_checkpoint",
    "prune_prototypes",
    "push_prototypes",
    "restore",
]
