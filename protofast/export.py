"""Export: a trained network as a file that runs without protofast, with the evidence beside logits.

`torch.export` keeps the fused operators as they are; `decompositions()` replaces them by plain
ones, which ONNX and other runtimes know:

    evidence = LogitsWithEvidence(model, k=5).eval()
    program = torch.export.export(evidence, (images,), dynamic_shapes={"images": {0: Dim("N")}})
    program = program.run_decompositions(decompositions())
    torch.onnx.export(program, f="network.onnx")  # needs onnx and onnxscript
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from protofast.models import PrototypeModel
from protofast.ops import decomposition

__all__ = ["Evidence", "LogitsWithEvidence", "decompositions"]


class Evidence(NamedTuple):
    """What `LogitsWithEvidence` returns; the k prototypes that speak most for the predicted class.

    logits [N, C]; prototypes, int64 [N, k]; contributions [N, k], the parts of the logit, largest
    first; activations [N, k]; locations, int64 [N, k] in [0, H*W), row-major.
    """

    logits: Tensor
    prototypes: Tensor
    contributions: Tensor
    activations: Tensor
    locations: Tensor


class LogitsWithEvidence(nn.Module):
    """A prototype network that says why: images -> Evidence, in tensors alone.

    Args:
        model: keeps the model protocol (`protofast.models.PrototypeModel`).
        k: prototypes per image, from 1 to P.

    Raises:
        ValueError: `k` is out of range.
    """

    def __init__(self, model: PrototypeModel, k: int = 5) -> None:
        super().__init__()
        if not 1 <= k <= model.num_prototypes:
            raise ValueError(f"k must lie in [1, {model.num_prototypes}]; got {k}")
        self.model = model
        self.k = k

    def forward(self, images: Tensor) -> Evidence:
        """Images, float in [0, 1], [N, channels, S, T] -> Evidence."""
        output = self.model(images)
        contributions = self.model.contributions(output)  # [N, C, P]
        predicted = output.logits.argmax(dim=1).view(-1, 1, 1)
        of_predicted = contributions.gather(1, predicted.expand(-1, 1, contributions.shape[2]))
        largest, prototypes = of_predicted.squeeze(1).topk(self.k, dim=1)
        return Evidence(
            output.logits,
            prototypes,
            largest,
            output.activations.gather(1, prototypes),
            output.locations.gather(1, prototypes),
        )


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., object]]:
    """PyTorch's own decompositions and those of protofast's operators into plain ones.

    For `ExportedProgram.run_decompositions`, which by itself leaves custom operators in place.
    Winners are selected by |z|^2 - 2 z.p + |p|^2, so where two patches are equally far to rounding,
    another of them may win than with the operator; its distance is exact all the same.
    """
    table: dict[torch._ops.OpOverload, Callable[..., object]] = dict(
        torch.export.default_decompositions()
    )
    table.update(decomposition.table())
    return table
