"""protofast: fused kernels for prototype networks, and tools to see what these have learnt.

Data, training, explanations and the report live in their subpackages and need the extras, which
come with `protofast[all]`.
"""

from protofast.interop import accelerate, restore
from protofast.layers import PrototypeLayer
from protofast.models import ProtoPNet
from protofast.ops import MaskedView, NearestPatch, masked_view, nearest_patch
from protofast.projection import project_prototypes

__all__ = [
    "MaskedView",
    "NearestPatch",
    "ProtoPNet",
    "PrototypeLayer",
    "accelerate",
    "masked_view",
    "nearest_patch",
    "project_prototypes",
    "restore",
]
