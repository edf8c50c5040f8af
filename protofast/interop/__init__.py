"""Drop-in for other people's code: their networks, their checkpoints, their configuration.

`protofast.interop.cabrnet` and `protofast.interop.protopnext` hold layers to be named in the
configuration of those libraries.
"""

from protofast.interop.acceleration import accelerate, restore
from protofast.interop.checkpoints import Checkpoint, load_checkpoint
from protofast.interop.normalized import NormalizedModel, from_normalized
from protofast.interop.prune import prune_prototypes
from protofast.interop.push import push_prototypes

__all__ = [
    "Checkpoint",
    "NormalizedModel",
    "accelerate",
    "from_normalized",
    "load_checkpoint",
    "prune_prototypes",
    "push_prototypes",
    "restore",
]
