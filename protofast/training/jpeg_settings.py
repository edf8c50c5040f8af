"""Settings of JPEG's two parts in Hoffmann et al. 2021: their experiment and their remedy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protofast.data import JpegAugmentation
from protofast.training.setting_types import Fraction, Frozen, Seed

Quality = Annotated[int, Field(ge=1, le=100)]
Codec = Literal["simplejpeg", "pillow"]


class JpegSettings(Frozen):
    """Classes whose images are compressed to JPEG, in training, projection and test images alike.

    Hoffmann et al., section 4; see :class:`protofast.data.CompressedImageSet`.

    Attributes:
        compressed: ``none``, a random ``half`` (the paper's text) or the ``odd`` classes, counted
            from 0 (its released code).
        quality: JPEG's.
        codec: ``simplejpeg``, or ``pillow`` as in the released code.
        at: ``file``: compressed before they are resized, as in the released code; ``input``:
            afterwards, at the size that the network sees.
        seed: Key of the random half.
    """

    compressed: Literal["none", "half", "odd"] = "none"
    quality: Quality = 20
    codec: Codec = "simplejpeg"
    at: Literal["file", "input"] = "file"
    seed: Seed = 0


class JpegAugmentationSettings(Frozen):
    """Training images that are compressed at random, whatever their class.

    Hoffmann et al., appendix F.2; see :class:`protofast.data.JpegAugmentation`. The last layer's
    images are not compressed where they are ``plain``.

    Attributes:
        probability: That an image is compressed, anew in every epoch; 0.5 in the paper.
        quality: JPEG's.
        codec: ``simplejpeg``, or ``pillow`` as in the released code.
    """

    probability: Fraction = 0.0
    quality: Quality = 20
    codec: Codec = "simplejpeg"

    def build(self) -> JpegAugmentation | None:
        """The same, for :class:`protofast.data.Batches`; None if no image is compressed."""
        return JpegAugmentation(**self.model_dump()) if self.probability else None
