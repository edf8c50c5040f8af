"""What the alignment loss costs: a training step with it against the plain step.

Each image is compared with its covered self in one prototype of its class, as the recipe's part
`aligned` does. The aligned step is what training runs; its parts are timed in a copy that is cut
between them, which gives the same gradients: that is asserted first. Plain and aligned steps take
turns, so that both see the same machine.

What neither the plain step nor the second pass itself has (backbone and add-on of the covered
images, forward and backward) is what the loss costs beyond it.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
from goals import BEYOND_SECOND_PASS
from timing import synchronised
from torch import Tensor

from protofast import ProtoPNet
from protofast.alignment import ViewMemory
from protofast.data import Batch
from protofast.losses import alignment_loss
from protofast.ops import masked_view_out
from protofast.training import Settings, load_settings
from protofast.training.aligned_pass import AlignedPass, Passed
from protofast.training.objective import training_loss

backbones = pytest.importorskip("protofast.models.backbones", reason="needs torchvision")
pytestmark = pytest.mark.benchmark(timer=synchronised)
IMAGES, CLASSES, PER_CLASS = 32, 200, 10
SETTINGS = load_settings("paper", parts=["aligned"])


@pytest.mark.parametrize("backbone", ["resnet18", "small"])
def test_alignment_step(benchmark: Any, device: str, backbone: str, quick: bool) -> None:
    if quick and backbone != "small":
        pytest.skip("not in the quick selection")
    size = {"resnet18": 224, "small": 96}[backbone]
    torch.manual_seed(0)
    model = ProtoPNet(
        backbones.build_backbone(backbone),
        num_classes=CLASSES,
        prototypes_per_class=PER_CLASS,
        input_size=(size, size),
    ).to(device)
    batch = Batch(
        torch.rand(IMAGES, 3, size, size, device=device),
        torch.randint(0, CLASSES, (IMAGES,), device=device),
        torch.arange(IMAGES, device=device),
    )
    step = Step(model, batch, SETTINGS)
    step.check()
    plain: list[float] = []

    def plain_first() -> None:
        start = synchronised()
        step.plain()
        plain.append(synchronised() - start)
        step.cut()

    benchmark.group = f"alignment step {device}"
    benchmark.pedantic(step.aligned, setup=plain_first, rounds=3 if backbone == "resnet18" else 5)
    assert set(BEYOND_SECOND_PASS) < set(step.parts)
    parts = {name: median(seconds) for name, seconds in step.parts.items()}
    facts = {"measured": "alignment step", "device": device, "layer": backbone, "parts": parts}
    benchmark.extra_info.update(facts | {"plain": median(plain)})


class Step:
    """The two training steps, and the aligned one in parts; `parts` collects the seconds."""

    def __init__(self, model: ProtoPNet, batch: Batch, settings: Settings) -> None:
        self.model, self.batch, self.training = model, batch, settings.training
        self.pass_ = AlignedPass(model, settings.training.alignment, seed=0)
        self.memory = ViewMemory()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        self.parts: dict[str, list[float]] = {}

    def plain(self) -> None:
        """A step without the alignment loss."""
        self._loss(Passed(self.model(self.batch.images))).backward()
        self._update()

    def aligned(self) -> None:
        """A step with it."""
        self._whole_gradients()
        self._update()

    def cut(self) -> None:
        """The same in parts."""
        self._cut_gradients()
        self._timed("optimiser", self._update)

    def _whole_gradients(self) -> None:
        index = self.pass_.prototypes(self.batch, epoch=0)
        self._loss(self.pass_(self.batch.images, index, 0.9)).backward()

    def _cut_gradients(self) -> None:
        model, images = self.model, self.batch.images
        index = self._timed(
            "choice of prototypes", lambda: self.pass_.prototypes(self.batch, epoch=0)
        )
        features = self._timed("first pass, forward", lambda: model.features(images))
        cut = features.detach().requires_grad_()
        maps = self._timed(
            "first maps", lambda: model.similarity_map(features.detach(), index).detach()
        )
        views = self._timed("covered images", lambda: self._views(maps, images))
        seen = self._timed("second pass, forward", lambda: model.features(views))
        second = seen.detach().requires_grad_()
        self._timed("alignment loss of the second maps", lambda: self._align(second, maps, index))
        self._timed("second pass, backward", lambda: seen.backward(second.grad))
        self._timed(
            "prototype layer, losses", lambda: self._loss(Passed(model.classify(cut))).backward()
        )
        self._timed("first pass, backward", lambda: features.backward(cut.grad))

    def _views(self, maps: Tensor, images: Tensor) -> Tensor:
        views = self.memory.take(images, len(images))
        masks = torch.empty(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
        masked_view_out(images, maps, views, masks, quantile=0.9, fill=self.model.mean)
        return views

    def _align(self, second: Tensor, maps: Tensor, index: Tensor) -> None:
        loss = alignment_loss(maps, self.model.similarity_map(second, index))
        (self.training.alignment.weight * loss).backward()

    def _loss(self, passed: Passed) -> Tensor:
        labels = self.batch.labels
        return training_loss(
            passed, labels, self.model, settings=self.training, class_weights=None
        )[0]

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _timed(self, name: str, part: Callable[[], Any]) -> Any:
        start = synchronised()
        result = part()
        self.parts.setdefault(name, []).append(synchronised() - start)
        return result

    def check(self) -> None:
        """Assert that the cut step gives the gradients of the one in one piece."""
        found = []
        for gradients in (self._cut_gradients, self._whole_gradients):
            self.model.zero_grad(set_to_none=True)
            gradients()
            found.append({name: value.grad for name, value in self.model.named_parameters()})
        self.model.zero_grad(set_to_none=True)
        self.parts.clear()
        for name, expected in found[1].items():
            ours = found[0][name]
            assert ours is not None
            assert expected is not None
            error = (ours - expected).norm() / expected.norm().clamp_min(1e-6)
            assert error < 1e-3, f"the gradient of {name} is off by {error:.1e}"
