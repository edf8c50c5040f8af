"""Layers for CaBRNet and ProtoPNeXt, and `PrototypeLayer.from_ppnet`."""

import importlib
import math

import pytest
import torch
from stand_ins import PPNet, TESNet, reciprocal
from torch import nn

from protofast import PrototypeLayer
from protofast.interop import cabrnet, protopnext

FEATURES = torch.rand(3, 8, 4, 5, generator=torch.Generator().manual_seed(0))
PROTOTYPES = torch.rand(6, 8, 1, 1, generator=torch.Generator().manual_seed(1))


def expanded(features, prototypes):
    """Squared distances [N, P, H, W] in float64, as both libraries define them."""
    rows = features.double().flatten(2).transpose(1, 2)
    squares = torch.cdist(rows, prototypes.double().flatten(1)) ** 2
    return squares.transpose(1, 2).unflatten(2, features.shape[2:])


def configured(name, **params):
    """As CaBRNet builds it from `module`, `name` and `params`."""
    module = importlib.import_module("protofast.interop.cabrnet")
    return getattr(module, name)(num_features=8, num_prototypes=6, **params)


@pytest.mark.parametrize(
    ("name", "params", "formula"),
    [
        ("ProtoPNetSimilarity", {}, lambda d: torch.log((d + 1) / (d + 1e-4))),
        (
            "LegacyProtoPNetSimilarity",
            {"stability_factor": 1e-3},
            lambda d: torch.log((d + 1) / (d + 1e-3)),
        ),
        ("ProtoTreeSimilarity", {}, lambda d: torch.exp(-torch.sqrt(d + 1e-14))),
        (
            "LegacyProtoTreeSimilarity",
            {"log_probabilities": True},
            lambda d: -torch.sqrt(d + 1e-14),
        ),
    ],
)
def test_cabrnet_layers(name, params, formula) -> None:
    layer = configured(name, **params)
    distances = expanded(FEATURES, PROTOTYPES)
    assert torch.allclose(layer.distances(FEATURES, PROTOTYPES).double(), distances, atol=1e-6)
    expected = formula(distances)
    for found in (
        layer(FEATURES, PROTOTYPES),
        layer.similarities(FEATURES, PROTOTYPES, anything=1),
        layer.distances_to_similarities(distances),
    ):
        assert torch.allclose(found.double(), expected, atol=1e-5)


def test_cabrnet_cosine() -> None:
    layer = configured("CosineSimilarity", stability_factor=1e-8)
    rows = nn.functional.normalize(FEATURES.double(), dim=1)
    cosines = nn.functional.conv2d(rows, nn.functional.normalize(PROTOTYPES.double(), dim=1))
    assert torch.allclose(layer.distances(FEATURES, PROTOTYPES).double(), 1 - cosines, atol=1e-6)
    assert torch.allclose(layer(FEATURES, PROTOTYPES).double(), cosines, atol=1e-6)


def test_cabrnet_state_dicts_with_the_legacy_kernel_load() -> None:
    layer = configured("LegacyProtoPNetSimilarity")
    assert list(layer.state_dict()) == []
    layer.load_state_dict({"_summation_kernel": torch.ones(6, 8, 1, 1)})
    with pytest.raises(RuntimeError, match="unknown"):
        layer.load_state_dict({"unknown": torch.ones(1)})
    assert isinstance(layer, cabrnet.SimilarityLayer)


@pytest.mark.parametrize("window", [(1, 1), (2, 3)])
def test_protopnext_activations(window) -> None:
    prototypes = torch.rand(6, 8, *window)
    windows = nn.functional.unfold(FEATURES, window).unflatten(2, (5 - window[0], 6 - window[1]))
    distances = expanded(windows, prototypes)
    found = protopnext.L2Activation(epsilon_val=1e-3)(FEATURES, prototypes)
    assert torch.allclose(found.double(), torch.log((distances + 1) / (distances + 1e-3)))
    found = protopnext.ExpL2Activation()(FEATURES, prototypes)
    assert torch.allclose(found.double(), torch.exp(-torch.sqrt(distances + 1e-14)))


def test_projected_prototypes_are_exact_and_gradients_finite() -> None:
    features = FEATURES.clone().requires_grad_()
    prototypes = FEATURES[:2, :, 1:2, 2:3].clone().requires_grad_()
    for activation, largest in (
        (protopnext.L2Activation(), math.log(1e4)),
        (protopnext.ExpL2Activation(), 1.0),
        (configured("ProtoPNetSimilarity"), math.log(1e4)),
        (configured("ProtoTreeSimilarity"), 1.0),
    ):
        found = activation(features, prototypes)
        assert found[0, 0, 1, 2].item() == pytest.approx(largest, abs=1e-6)
        found.sum().backward()
        assert torch.isfinite(features.grad).all()
        assert torch.isfinite(prototypes.grad).all()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("activation", ["log", "linear"])
def test_a_layer_from_a_ppnet(activation, wrapped) -> None:
    model = PPNet(prototype_activation_function=activation).eval()
    model.epsilon = 1e-3
    layer = PrototypeLayer.from_ppnet(nn.DataParallel(model) if wrapped else model)
    images = torch.rand(2, 3, 32, 32)
    found = layer(model.conv_features(images))
    logits, distances = model(images)
    assert torch.allclose(found.distances, distances, atol=1e-5)
    assert torch.allclose(model.last_layer(found.activations), logits, atol=1e-5)
    layer.prototypes.data.zero_()
    assert model.prototype_vectors.abs().sum() > 0


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (nn.Linear(1, 1), TypeError, "prototype_vectors"),
        (PPNet(prototype_activation_function=reciprocal), ValueError, "accelerate"),
        (PPNet((12, 8, 2, 2)), ValueError, r"\[12, 8, 2, 2\]"),
        (TESNet(), ValueError, "TESNet"),
    ],
)
def test_no_layer_from(model, error, words) -> None:
    with pytest.raises(error, match=words):
        PrototypeLayer.from_ppnet(model)
