"""The alignment step against its definition in plain PyTorch, and what it must leave alone."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protofast.alignment import _blocks, alignment_step, mask_weights
from protofast.losses import alignment_loss
from protofast.models import Output, ProtoPNet, PrototypeModel
from protofast.ops import ViewMemory, similarity_map


class SmallBackbone(nn.Module):
    """Two convolutions with batch norm: 32 px -> 8 x 8."""

    out_channels = 12

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.BatchNorm2d(12, momentum=None),  # a cumulative average
            nn.InstanceNorm2d(12, track_running_stats=True),
            nn.ReLU(),
        )

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.layers(images)
        return result


@pytest.fixture
def model() -> ProtoPNet:
    torch.manual_seed(0)
    return ProtoPNet(
        SmallBackbone(), num_classes=3, prototypes_per_class=2, depth=8, input_size=(32, 32)
    )


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


INDEX = torch.tensor([[0, 5], [1, 1], [4, 2], [3, 0]])


def by_definition(model: PrototypeModel, images: Tensor, index: Tensor, quantile: float) -> Tensor:
    """Both passes, one image and prototype after another; the second maps [N, K, H, W]."""
    rows = []
    for n in range(len(images)):
        for k in index[n]:
            image = images[n : n + 1]
            with torch.no_grad():
                first = model.similarity_map(model.features(image))[:, k : k + 1]
                up = F.interpolate(first, size=image.shape[2:], mode="bilinear")
                shown = up > torch.quantile(up, quantile)
            view = torch.where(shown, image, model.mean.view(-1, 1, 1))
            rows.append(model.similarity_map(model.features(view))[0, k])
    return torch.stack(rows).unflatten(0, index.shape)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("chunk", [None, 1, 3, 4])
def test_maps_loss_and_gradients_are_those_of_the_definition(
    model: ProtoPNet, images: Tensor, chunk: int | None
) -> None:
    model.eval()  # so that a view does not depend on those beside it
    step = alignment_step(model, images, INDEX, quantile=0.8, chunk=chunk)
    first = model.similarity_map(model.features(images), INDEX)
    second = by_definition(model, images, INDEX, 0.8)
    torch.testing.assert_close(step.first_maps, first)
    torch.testing.assert_close(step.second_maps, second)
    loss = (first.detach() - second).square().mean()
    torch.testing.assert_close(step.loss, loss)
    got, expected = gradients(model, step.loss), gradients(model, loss)
    assert len(got) > 8
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


class Grey(PrototypeModel):
    """A network of somebody else's: one channel, dot products with prototypes of no class."""

    def __init__(self) -> None:
        super().__init__(num_classes=2, num_channels=1, input_size=(20, 28), mean=[0.4], std=[2])
        self.patches = nn.Conv2d(1, 6, 4, stride=4)
        self.vectors = nn.Parameter(torch.randn(5, 6))

    @property
    def prototypes(self) -> nn.Parameter:
        return self.vectors

    def features(self, images: Tensor) -> Tensor:
        result: Tensor = self.patches(self.normalise(images))
        return result

    def classify(self, features: Tensor) -> Output:
        raise NotImplementedError  # the step has no use for it

    def similarity_map(self, features: Tensor, index: Tensor | None = None) -> Tensor:
        return similarity_map(
            features, self.vectors, index=index, metric="dot", similarity="linear"
        )

    def contributions(self, output: Output) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_model_of_the_protocol_and_dtype_will_do(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Grey().to(dtype)
    images = torch.rand(3, 1, 20, 28).to(dtype)
    index = torch.tensor([[0], [4], [2]])
    step = alignment_step(model, images, index, quantile=0.75)
    torch.testing.assert_close(step.second_maps, by_definition(model, images, index, 0.75))
    assert step.loss.dtype == torch.promote_types(dtype, torch.float32)
    step.loss.backward()
    assert model.vectors.grad is not None
    assert model.vectors.grad.abs().sum(1).gt(0).tolist() == [True, False, True, False, True]


def test_under_autocast(model: ProtoPNet, images: Tensor) -> None:
    expected = alignment_step(model.eval(), images, INDEX)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = alignment_step(model, images, INDEX)
    assert step.second_maps.dtype == torch.float32
    torch.testing.assert_close(step.first_maps, expected.first_maps, rtol=0.05, atol=0.05)
    step.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_masks_show_what_lies_above_the_quantile(model: ProtoPNet, images: Tensor) -> None:
    step = alignment_step(model.eval(), images, INDEX)
    assert step.masks.shape == (4, 2, 32, 32)
    assert (step.masks.flatten(2).sum(2) <= 103).all()  # a tenth of 1024, rounded up
    assert (step.masks.flatten(2).sum(2) > 0).any()


def test_what_is_covered_is_zero_after_normalising(model: ProtoPNet, images: Tensor) -> None:
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    step = alignment_step(model.eval(), images, INDEX, quantile=1.0)
    assert not step.masks.any()
    assert seen[1].shape == (8, 3, 32, 32)
    assert (seen[1] == 0).all()


def test_features_of_the_caller_spare_the_first_pass(model: ProtoPNet, images: Tensor) -> None:
    expected = alignment_step(model.eval(), images, INDEX)
    features = model.features(images)
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    got = alignment_step(model, images, INDEX, features=features)
    assert calls == [8]
    assert torch.equal(got.loss, expected.loss)


def test_the_target_gets_a_gradient_only_if_wanted(model: ProtoPNet, images: Tensor) -> None:
    model.eval()
    for detach in (True, False):
        features = model.features(images).detach().requires_grad_()
        step = alignment_step(model, images, INDEX, features=features, detach_target=detach)
        step.loss.backward()
        assert (features.grad is None) == detach


@pytest.mark.parametrize("update", [True, False])
def test_batch_norm_statistics(model: ProtoPNet, images: Tensor, update: bool) -> None:
    """Without update: as after the first pass alone; gradients as with it, by the batch's own."""
    model.train()
    once = copy.deepcopy(model)
    once.features(images)
    other = copy.deepcopy(model)
    buffers = dict(model.named_buffers())
    step = alignment_step(model, images, INDEX, update_statistics=update)
    for name, buffer in once.named_buffers():
        if name.endswith("num_batches_tracked") and update:  # not every layer counts
            continue
        same = torch.equal(model.get_buffer(name), buffer)
        assert same == (not update or "running" not in name), name
        assert model.get_buffer(name) is buffers[name]
    reference = alignment_step(other, images, INDEX, update_statistics=not update)
    assert torch.equal(step.second_maps, reference.second_maps)
    got, expected = gradients(model, step.loss), gradients(other, reference.loss)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_statistics_are_put_back_after_an_error(model: ProtoPNet, images: Tensor) -> None:
    features = model.train().features(images)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def refuse(module: nn.Module, inputs: object) -> None:
        raise RuntimeError("no further")

    model.add_on.register_forward_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="no further"):
        alignment_step(model, images, INDEX, features=features, update_statistics=False)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


def test_weights_and_l1_are_the_released_codes(model: ProtoPNet, images: Tensor) -> None:
    step = alignment_step(
        model.eval(), images, INDEX, quantile=0.7, difference="l1", weigh_by_mask=True
    )
    weights = F.interpolate(step.masks.float(), size=(8, 8), mode="bilinear")
    assert set(weights.unique().tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert torch.equal(mask_weights(step.masks, (8, 8)), weights)
    expected = ((step.first_maps - step.second_maps).abs() * weights).sum() / weights.sum()
    torch.testing.assert_close(step.loss, expected)


@pytest.mark.parametrize("chunk", [None, 3])
def test_memory_is_used_again_and_changes_nothing(
    model: ProtoPNet, images: Tensor, chunk: int | None
) -> None:
    model.eval()
    memory = ViewMemory()
    for batch in (images, images.flip(0), images[:2]):
        index = INDEX[: len(batch)]
        got = alignment_step(model, batch, index, chunk=chunk, memory=memory)
        expected = alignment_step(model, batch, index, chunk=chunk)
        assert torch.equal(got.loss, expected.loss)
        for a, b in zip(gradients(model, got.loss), gradients(model, expected.loss), strict=True):
            assert torch.equal(a, b)
    with torch.no_grad():
        without = alignment_step(model, images, INDEX, chunk=chunk, memory=memory)
    assert torch.equal(without.masks, alignment_step(model, images, INDEX).masks)
    torch.testing.assert_close(
        without.second_maps, alignment_step(model, images, INDEX).second_maps
    )


@pytest.mark.parametrize("shape", [(4, 0), (0, 2)])
def test_nothing_chosen_is_a_loss_of_zero(
    model: ProtoPNet, images: Tensor, shape: tuple[int, int]
) -> None:
    step = alignment_step(model.eval(), images[: shape[0]], INDEX.new_zeros(shape))
    assert step.loss.item() == 0
    assert step.masks.shape == (*shape, 32, 32)
    step.loss.backward()


def test_wrong_arguments_are_named(model: ProtoPNet, images: Tensor) -> None:
    with pytest.raises(TypeError, match=r"index must be an int64 tensor; got torch\.int32"):
        alignment_step(model, images, INDEX.int())
    with pytest.raises(ValueError, match=r"\[N, K\] with N = 4 .*; got \[3, 2\]"):
        alignment_step(model, images, INDEX[:3])
    with pytest.raises(ValueError, match="chunk must be at least 1; got 0"):
        alignment_step(model, images, INDEX, chunk=0)
    with pytest.raises(IndexError, match=r"\[0, 6\); got 6"):
        alignment_step(model, images, INDEX + 1)


@pytest.mark.parametrize(("images", "each", "chunk"), [(5, 3, 7), (5, 3, 2), (1, 1, 1), (2, 4, 4)])
def test_blocks_cover_everything_once_in_order(images: int, each: int, chunk: int) -> None:
    table = torch.arange(images * each).view(images, each)
    blocks = [table[some, of_these] for some, of_these in _blocks(images, each, chunk)]
    assert torch.equal(torch.cat([block.flatten() for block in blocks]), table.flatten())
    assert all(block.numel() <= chunk and block.is_contiguous() for block in blocks)


def test_loss_on_tensors() -> None:
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 0.0]], requires_grad=True)
    assert alignment_loss(first, second).item() == (9 + 4) / 2
    assert alignment_loss(first, second, difference="l1").item() == (3 + 2) / 2
    weights = torch.tensor([[0.25, 0.75]])
    assert alignment_loss(first, second, weights=weights).item() == 9 * 0.25 + 4 * 0.75
    nothing = alignment_loss(first, second, weights=torch.zeros(1, 2))
    nothing.backward()
    assert nothing.item() == 0
    assert torch.equal(second.grad, torch.zeros(1, 2))
    assert alignment_loss(first[:0], second[:0]).item() == 0
    with pytest.raises(ValueError, match=r"same shape; got \[\[1, 2\], \[1, 1\]\]"):
        alignment_loss(first, second[:, :1])
    with pytest.raises(ValueError, match="'l2' or 'l1'; got 'l3'"):
        alignment_loss(first, second, difference="l3")
