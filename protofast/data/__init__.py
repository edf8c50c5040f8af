"""Images to train, project and test on: rendered birds, CUB, Cars, class folders."""

from protofast.data.augmentation import Augmentation
from protofast.data.batches import Batch, Batches
from protofast.data.birds import PARTS, BirdSet, BirdTruth, open_birds
from protofast.data.cub import open_cub
from protofast.data.decode import decode_image, load_image, resize_image
from protofast.data.image_set import FileImageSet, ImageSet, MemoryImageSet, Sample, Splits

__all__ = [
    "PARTS",
    "Augmentation",
    "Batch",
    "Batches",
    "BirdSet",
    "BirdTruth",
    "FileImageSet",
    "ImageSet",
    "MemoryImageSet",
    "Sample",
    "Splits",
    "decode_image",
    "load_image",
    "open_birds",
    "open_cub",
    "resize_image",
]
