"""Rendered birds: fine-grained classes with ground truth for every part, made on the spot."""

from protofast.data.birds.anatomy import PARTS
from protofast.data.birds.bird_set import MAX_SIZE, BirdSet, BirdTruth, open_birds
from protofast.data.birds.species import MAX_CLASSES

__all__ = ["MAX_CLASSES", "MAX_SIZE", "PARTS", "BirdSet", "BirdTruth", "open_birds"]
