"""Networks exported: without protofast's operators, with the same numbers, run by ONNX Runtime."""

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from protofast import ProtoPNet, PrototypeLayer
from protofast.export import LogitsWithEvidence, decompositions

SIZE = (48, 64)


def some_model(**options: str) -> ProtoPNet:
    torch.manual_seed(0)
    model = ProtoPNet(
        nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.BatchNorm2d(8), nn.ReLU()),
        num_classes=4,
        prototypes_per_class=3,
        depth=16,
        input_size=SIZE,
        **options,  # type: ignore[arg-type]
    )
    return model.eval()


def some_images(count: int) -> Tensor:
    return torch.rand(5, 3, *SIZE, generator=torch.Generator().manual_seed(1))[:count]


class Nearest(nn.Module):
    """A layer's activations and distances; images are taken for features."""

    def __init__(self, layer: PrototypeLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(images)[:2]


def exported(module: nn.Module, images: Tensor) -> ExportedProgram:
    shapes = {"images": {0: Dim("N", min=1, max=64)}}
    program = torch.export.export(module, (images,), dynamic_shapes=shapes)
    return program.run_decompositions(decompositions())


def operators(program: ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metric": "l2", "similarity": "exp"},
        {"metric": "dot", "similarity": "linear"},
        {"metric": "cosine", "similarity": "linear"},
    ],
    ids=str,
)
def test_decomposed_programs_know_no_operator_of_ours_and_give_the_same(
    options: dict[str, str],
) -> None:
    evidence = LogitsWithEvidence(some_model(**options), k=3).eval()
    program = exported(evidence, some_images(2))
    assert not [name for name in operators(program) if "protofast" in name]
    for count in (1, 5):  # another number of images than it was exported with
        got = program.module()(some_images(count))
        for ours, expected in zip(got, evidence(some_images(count)), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_projected_patch_keeps_its_activation() -> None:
    layer = PrototypeLayer(6, 3)
    with torch.no_grad():
        layer.prototypes[4] = some_images(2)[1, :, 11, 12]

    activations, distances = exported(Nearest(layer), some_images(2)).module()(some_images(3))
    assert distances[1, 4] == 0
    assert activations[1, 4].item() == pytest.approx(math.log(1e4), rel=1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_numbers_that_are_not_finite_stay_where_they_are(bad: float) -> None:
    layer = PrototypeLayer(6, 3).eval()
    images = some_images(2)
    with torch.no_grad():
        layer.prototypes[2, 0] = math.inf
    spoilt = images.clone()
    spoilt[1, 1, 5, 6] = bad
    with torch.no_grad():
        got = exported(Nearest(layer), images).module()(spoilt)
        expected = layer(spoilt)
    healthy = [0, 1, 3, 4, 5]
    for ours, wanted in zip(got, expected[:2], strict=True):
        torch.testing.assert_close(ours[:, healthy], wanted[:, healthy], equal_nan=True)


def test_maps_and_frozen_layers_are_decomposed() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = PrototypeLayer(6, 3)
            self.layer.eval()
            self.layer.freeze()

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            index = torch.tensor([[0, 5]]).expand(images.shape[0], -1)
            return self.layer(images).activations, self.layer.similarity_map(images, index)

    torch.manual_seed(0)
    maps = Maps().eval()
    with torch.no_grad():
        program = exported(maps, some_images(2))
        assert not [name for name in operators(program) if "protofast" in name]
        for ours, expected in zip(
            program.module()(some_images(3)), maps(some_images(3)), strict=True
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_onnx_gives_logits_and_evidence(tmp_path: Path) -> None:
    evidence = LogitsWithEvidence(some_model(), k=3).eval()
    file = tmp_path / "network.onnx"
    program = exported(evidence, some_images(2))
    torch.onnx.export(program, f=file, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (name,) = [given.name for given in session.get_inputs()]
    for count in (1, 5):
        images = some_images(count)
        got = session.run(None, {name: images.numpy()})
        for ours, expected in zip(got, evidence(images), strict=True):
            np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [0, 13])
def test_as_many_prototypes_as_there_are(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must lie in \[1, 12\]; got {k}"):
        LogitsWithEvidence(some_model(), k=k)
