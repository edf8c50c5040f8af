"""Where the time of a training step goes: ResNet-18, 224 x 224, batches of 32, 2,000 prototypes.

The step is cut at the layer's inputs and outputs, so that each part's time is its own; the sum of
the parts is the step. Gradients are those of the uncut step, which is asserted first.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from baselines import Layer, fresh
from timing import synchronised
from torch import Tensor
from torch.nn import functional as F

from protofast import ProtoPNet, losses

backbones = pytest.importorskip("protofast.models.backbones", reason="needs torchvision")
pytestmark = pytest.mark.benchmark(timer=synchronised)
IMAGES, SIZE, CLASSES = 32, 224, 200


@pytest.mark.parametrize("layer", ["original", "ours"])
def test_training_step(benchmark: Any, device: str, layer: str, quick: bool) -> None:
    if quick:
        pytest.skip("not in the quick selection")
    torch.manual_seed(0)
    model = ProtoPNet(
        backbones.build_backbone("resnet18"), num_classes=CLASSES, input_size=(SIZE, SIZE)
    ).to(device)
    images = torch.rand(IMAGES, 3, SIZE, SIZE, device=device)
    labels = torch.randint(0, CLASSES, (IMAGES,), device=device)
    step = CutStep(model, images, labels, fresh(layer))
    benchmark.group = f"training step {device}"
    step.check()
    step()
    step.parts.clear()
    benchmark.pedantic(step, rounds=3)
    parts = {name: sum(seconds) / len(seconds) for name, seconds in step.parts.items()}
    facts = {"measured": "training step", "device": device, "layer": layer, "parts": parts}
    benchmark.extra_info.update(facts)
    assert sum(parts.values()) == pytest.approx(benchmark.stats.stats.mean, rel=0.02)


class CutStep:
    """One training step in parts; `parts` collects the seconds of each."""

    def __init__(self, model: ProtoPNet, images: Tensor, labels: Tensor, layer: Layer) -> None:
        self.model, self.images, self.labels, self.layer = model, images, labels, layer
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        self.parts: dict[str, list[float]] = {}

    def __call__(self) -> None:
        self.gradients()
        self._timed("optimiser", self._update)

    def gradients(self) -> None:
        """All but the update."""
        model = self.model
        features = self._timed("backbone and add-on, forward", lambda: model.features(self.images))
        cut = features.detach().requires_grad_()
        prototypes = model.prototypes
        outputs = self._timed("prototype layer, forward", lambda: self.layer(cut, prototypes))
        upstream = self._timed("last layer and losses", lambda: self._head(*outputs))
        grad_features, prototypes.grad = self._timed(
            "prototype layer, backward",
            lambda: torch.autograd.grad(outputs, (cut, prototypes), upstream),
        )
        self._timed("backbone and add-on, backward", lambda: features.backward(grad_features))

    def _head(self, activations: Tensor, distances: Tensor) -> tuple[Tensor, ...]:
        """Loss and its gradients; those of activations and distances are returned."""
        activations = activations.detach().requires_grad_()
        distances = distances.detach().requires_grad_()
        self._loss(activations, distances).backward()
        assert activations.grad is not None
        assert distances.grad is not None
        return activations.grad, distances.grad

    def _loss(self, activations: Tensor, distances: Tensor) -> Tensor:
        model, labels = self.model, self.labels
        logits = F.linear(activations, model.last_layer.weight)
        return (
            losses.classification_loss(logits, labels)
            + 0.8 * losses.cluster_loss(distances, labels, model.prototype_class)
            - 0.08 * losses.separation_loss(distances, labels, model.prototype_class)
            + 1e-4 * losses.last_layer_l1(model.last_layer.weight, model.prototype_class)
        )

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _timed(self, name: str, part: Callable[[], Any]) -> Any:
        start = synchronised()
        result = part()
        self.parts.setdefault(name, []).append(synchronised() - start)
        return result

    def check(self) -> None:
        """Assert that the cut step gives the gradients of the step in one piece."""
        model = self.model
        self.gradients()
        cut = {name: value.grad for name, value in model.named_parameters()}
        self.parts.clear()
        model.zero_grad(set_to_none=True)
        self._loss(*self.layer(model.features(self.images), model.prototypes)).backward()
        for name, value in model.named_parameters():
            expected = cut[name]
            assert value.grad is not None
            assert expected is not None
            error = (value.grad - expected).norm() / expected.norm().clamp_min(1e-6)
            assert error < 1e-3, f"the gradient of {name} is off by {error:.1e}"
        model.zero_grad(set_to_none=True)
