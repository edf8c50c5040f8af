"""Our attacks and Foolbox's do the same to a plain classifier under equal settings."""

import warnings

import pytest
import torch
from plain_classifier import random_images, small_classifier

from protofast.attacks import cross_entropy, fgsm, pgd

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy, about a name Foolbox imports
    import foolbox


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("epsilon", "step_size", "steps"), [(0.03, 0.01, 10), (0.3, 0.05, 20)])
def test_pgd_agrees_with_foolbox(norm, epsilon, step_size, steps):
    model = small_classifier(dtype=torch.float64, seed=1).eval()
    images, labels = random_images(10, seed=1, dtype=torch.float64), torch.arange(10) % 4
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    theirs = kind(abs_stepsize=step_size, steps=steps, random_start=False).run(
        foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), images, labels, epsilon=epsilon
    )
    ours = pgd(
        cross_entropy(model, labels),
        images,
        epsilon=epsilon,
        step_size=step_size,
        steps=steps,
        norm=norm,
        random_start=False,
    )
    torch.testing.assert_close(ours.images, theirs, rtol=0, atol=1e-9)
    assert (ours.images - images).abs().max() > 0.5 * epsilon / images[0].numel() ** 0.5


def test_fgsm_agrees_with_foolbox():
    model = small_classifier(dtype=torch.float64, seed=2).eval()
    images, labels = random_images(10, seed=2, dtype=torch.float64), torch.arange(10) % 4
    theirs = foolbox.attacks.LinfFastGradientAttack(random_start=False).run(
        foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), images, labels, epsilon=0.05
    )
    ours = fgsm(
        cross_entropy(model, labels), images, epsilon=0.05, step_size=0.05, random_start=False
    )
    torch.testing.assert_close(ours.images, theirs, rtol=0, atol=1e-12)
