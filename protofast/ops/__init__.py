"""Operators of prototype layers: compiled where they can be, plain PyTorch everywhere else."""

from protofast import _build
from protofast.ops.distance_map import distance_map, mean_distance, similarity_map
from protofast.ops.dot_and_cosine import DotAndCosine, dot_and_cosine
from protofast.ops.focal_similarity import focal_similarity
from protofast.ops.masked_view import MaskedView, ViewMemory, masked_view, masked_view_out
from protofast.ops.nearest_patch import NearestPatch, nearest_patch
from protofast.ops.nearest_patch_within import NearPairs, nearest_patch_within
from protofast.ops.nearest_patches import nearest_patches

__all__ = [
    "DotAndCosine",
    "MaskedView",
    "NearPairs",
    "NearestPatch",
    "ViewMemory",
    "distance_map",
    "dot_and_cosine",
    "focal_similarity",
    "masked_view",
    "masked_view_out",
    "mean_distance",
    "nearest_patch",
    "nearest_patch_within",
    "nearest_patches",
    "similarity_map",
]

_build.load_libraries()  # after the declarations above: compiled kernels replace the reference
