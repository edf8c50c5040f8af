"""Images to train, project and test on: rendered birds, CUB, Cars, class folders."""

from protofast.data.augmentation import Augmentation
from protofast.data.batches import Batch, Batches
from protofast.data.birds import PARTS, BirdSet, BirdTruth, open_birds
from protofast.data.cars import open_cars
from protofast.data.cub import open_cub
from protofast.data.decode import decode_image, load_image, resize_image
from protofast.data.folders import open_folders
from protofast.data.image_set import FileImageSet, ImageSet, MemoryImageSet, Sample, Splits
from protofast.data.jpeg import (
    CompressedImageSet,
    JpegAugmentation,
    changed_image,
    compress_splits,
    compressed_classes,
    compression,
    round_trip,
)
from protofast.data.leaks import Leak, check_leaks, describe_leaks
from protofast.data.masking import Masking

__all__ = [
    "PARTS",
    "Augmentation",
    "Batch",
    "Batches",
    "BirdSet",
    "BirdTruth",
    "CompressedImageSet",
    "FileImageSet",
    "ImageSet",
    "JpegAugmentation",
    "Leak",
    "Masking",
    "MemoryImageSet",
    "Sample",
    "Splits",
    "changed_image",
    "check_leaks",
    "compress_splits",
    "compressed_classes",
    "compression",
    "decode_image",
    "describe_leaks",
    "load_image",
    "open_birds",
    "open_cars",
    "open_cub",
    "open_folders",
    "resize_image",
    "round_trip",
]
