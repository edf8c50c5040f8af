"""Rendered birds: fine-grained classes with ground truth for every part, made on the spot."""

from protofast.data.birds.anatomy import PARTS
from protofast.data.birds.bird_set import BirdSet, BirdTruth, open_birds

__all__ = ["PARTS", "BirdSet", "BirdTruth", "open_birds"]
