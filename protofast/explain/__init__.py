"""Explanations: which prototypes an image activates and where, and what each stands for."""

from protofast.explain.local import Explanation, explain_image, explain_images
from protofast.explain.run import explain_run
from protofast.heatmaps import high_activation_boxes, upsample

__all__ = [
    "Explanation",
    "explain_image",
    "explain_images",
    "explain_run",
    "high_activation_boxes",
    "upsample",
]
