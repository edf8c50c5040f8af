"""Attacks: small changes of images that make an objective as large as they can."""

from protofast.attacks.adversarial_training import FastAdversarial
from protofast.attacks.fgsm import fgsm
from protofast.attacks.noise import uniform_noise
from protofast.attacks.objectives import activation, cross_entropy, frozen, misclassified
from protofast.attacks.pgd import Attacked, Objective, Scored, pgd

__all__ = [
    "Attacked",
    "FastAdversarial",
    "Objective",
    "Scored",
    "activation",
    "cross_entropy",
    "fgsm",
    "frozen",
    "misclassified",
    "pgd",
    "uniform_noise",
]
