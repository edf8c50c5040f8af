"""The images that adversarial training learns from."""

import torch
from small_runs import random_batch
from torch import Tensor, nn

from protofast.attacks import FastAdversarial
from protofast.models import ProtoPNet


def test_adversarial_images_stay_in_the_ball_and_raise_the_loss(model: ProtoPNet) -> None:
    batch, attack = random_batch(12), FastAdversarial(epsilon=4 / 255, step_size=5 / 255, seed=2)
    model.train()
    model.backbone.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    found = attack(model, batch.images, batch.labels, index=batch.index, epoch=0)
    assert not found.requires_grad
    assert float((found - batch.images).abs().max()) <= 4 / 255 + 1e-7
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(value.requires_grad for value in model.backbone.parameters())
    assert all(value.requires_grad for value in model.add_on.parameters())
    assert all(value.grad is None for value in model.parameters())
    model.eval()
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(model(images).logits, batch.labels)
            for images in (batch.images, found)
        ]
    assert losses[1] > losses[0]


def test_a_weaker_perturbation_stays_in_a_smaller_ball(model: ProtoPNet) -> None:
    batch, attack = random_batch(6), FastAdversarial()
    keys = {"index": batch.index, "epoch": 0}
    weak = attack(model, batch.images, batch.labels, strength=0.25, **keys)
    assert 1 / 255 < float((weak - batch.images).abs().max()) <= 2 / 255 + 1e-7
    none = attack(model, batch.images, batch.labels, strength=0.0, **keys)
    assert torch.equal(none, batch.images)


def test_adversarial_noise_belongs_to_seed_epoch_and_image(model: ProtoPNet) -> None:
    model.eval()
    batch, attack = random_batch(8), FastAdversarial(seed=2)

    def found(attack: FastAdversarial, some: slice, epoch: int = 0) -> Tensor:
        images, labels, index = (part[some] for part in batch)
        return attack(model, images, labels, index=index, epoch=epoch)

    whole = found(attack, slice(0, 8))
    torch.testing.assert_close(whole[3:5], found(attack, slice(3, 5)), rtol=0, atol=1e-6)
    assert not torch.equal(whole, found(attack, slice(0, 8), epoch=1))
    assert not torch.equal(whole, found(FastAdversarial(seed=3), slice(0, 8)))
