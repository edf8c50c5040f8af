"""protofast: fused kernels for networks that classify by prototypical parts, and tools to trust them."""

from protofast.ops import NearestPatch, nearest_patch

__all__ = ["NearestPatch", "nearest_patch"]
