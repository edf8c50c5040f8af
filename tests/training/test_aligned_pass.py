"""The second, masked pass of the alignment loss over a batch of training."""

from pathlib import Path

import pytest
import torch
from small_runs import Tiny, random_batch
from torch import nn

from protofast.alignment import alignment_step
from protofast.data import Batch, Splits
from protofast.errors import SettingsError
from protofast.models import ProtoPNet
from protofast.training import train
from protofast.training.aligned_pass import AlignedPass
from protofast.training.defences import AlignmentSettings


def test_gradients_reach_the_backbone_through_the_second_pass_alone(model: ProtoPNet) -> None:
    aligned, batch = AlignedPass(model, AlignmentSettings(weight=1), seed=0), random_batch()
    index = aligned.prototypes(batch, epoch=0)
    aligned(batch.images, index, 0.9).alignment.backward()
    found = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    with torch.no_grad():
        first = model.features(batch.images)
    alignment_step(model, batch.images, index, features=first).loss.backward()
    reached = 0
    for name, value in model.named_parameters():
        if value.grad is None:
            assert found[name] is None, name
        else:
            assert torch.equal(found[name], value.grad), name
            reached += name.startswith("backbone") and bool(value.grad.any())
    assert reached > 4
    model.zero_grad()
    both = AlignedPass(model, AlignmentSettings(weight=1, detach_target=False), seed=0)
    both(batch.images, index, 0.9).alignment.backward()
    name, weight = next(iter(model.backbone.named_parameters()))
    assert not torch.equal(weight.grad, found[f"backbone.{name}"])


def test_the_output_is_the_networks_own_and_its_features_are_used_again(model: ProtoPNet) -> None:
    batch = random_batch()
    expected = model(batch.images)
    aligned, sizes = AlignedPass(model, AlignmentSettings(weight=1, fraction=0.4), seed=0), []
    model.backbone.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    passed = aligned(batch.images, aligned.prototypes(batch, epoch=0), 0.9)
    for ours, own in zip(passed.output, expected, strict=True):
        assert torch.equal(ours, own)
    assert sizes == [9, 4], "one pass over all images, one over 0.4 of them, rounded up"


def test_each_image_is_compared_in_a_prototype_of_its_class(model: ProtoPNet) -> None:
    aligned, batch = AlignedPass(model, AlignmentSettings(weight=1), seed=3), random_batch(300)
    chosen = [aligned.prototypes(batch, epoch=epoch)[:, 0] for epoch in range(20)]
    assert all(torch.equal(model.prototype_class[some], batch.labels) for some in chosen)
    counts = torch.bincount(torch.cat(chosen), minlength=6).double() / 2000
    expected = torch.tensor([1 / 3, 1 / 2, 1, 1 / 2, 1 / 3, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(counts, expected, rtol=0, atol=0.04)
    turned = Batch(*(part.flip(0) for part in batch))
    assert torch.equal(aligned.prototypes(turned, epoch=4)[:, 0].flip(0), chosen[4])
    other = AlignedPass(model, AlignmentSettings(weight=1), seed=4)
    assert not torch.equal(other.prototypes(batch, epoch=4)[:, 0], chosen[4])


def test_the_random_quantile_is_drawn_for_each_batch(model: ProtoPNet) -> None:
    aligned = AlignedPass(model, AlignmentSettings(weight=1, quantile="random"), seed=0)
    drawn = torch.tensor([aligned.quantile(epoch=1, batch=batch) for batch in range(500)])
    assert drawn.min() >= 0.5
    assert drawn.max() < 0.98
    assert float(drawn.mean()) == pytest.approx(0.74, abs=0.02)
    assert len(drawn.unique()) > 490
    assert aligned.quantile(epoch=1, batch=3) == pytest.approx(float(drawn[3]))
    fixed = AlignedPass(model, AlignmentSettings(weight=1), seed=0)
    assert fixed.quantile(epoch=1, batch=3) == 0.9


def test_statistics_of_the_second_pass_count_only_if_asked_for(model: ProtoPNet) -> None:
    batch = random_batch()
    counts = []
    for update in (True, False):
        settings = AlignmentSettings(weight=1, update_statistics=update)
        aligned = AlignedPass(model.train(), settings, seed=0)
        norm = next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d))
        assert norm.num_batches_tracked is not None
        before = int(norm.num_batches_tracked)
        aligned(batch.images, aligned.prototypes(batch, epoch=0), 0.9)
        counts.append(int(norm.num_batches_tracked) - before)
    assert counts == [2, 1]


def test_a_class_without_prototypes_cannot_be_aligned(
    model: ProtoPNet, tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    model.prune(torch.tensor([0, 1, 3]))
    with pytest.raises(SettingsError, match=r"class 1 has none; set training\.alignment\.weight"):
        AlignedPass(model, AlignmentSettings(weight=1), seed=0)
    with pytest.raises(SettingsError, match="class 1 has none"):
        train(tiny("training.alignment.weight=1"), tmp_path / "run", data=birds, model=model)
    assert not (tmp_path / "run").exists()
