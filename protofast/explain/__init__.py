"""Explanations: which prototypes an image activates and where, and what each stands for."""

from protofast.explain.figures import save_explanation_figure, save_prototype_figure
from protofast.explain.local import Evidence, Explanation, explain_image, explain_images
from protofast.explain.run import explain_run

__all__ = [
    "Evidence",
    "Explanation",
    "explain_image",
    "explain_images",
    "explain_run",
    "save_explanation_figure",
    "save_prototype_figure",
]
