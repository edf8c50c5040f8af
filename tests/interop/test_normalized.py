"""`from_normalized`: somebody else's network behind the model protocol."""

from types import SimpleNamespace

import pytest
import torch
from stand_ins import Focal, PPNet, TESNet, reciprocal
from torch import nn

import protofast
from protofast import interop
from protofast.models.protocol import PrototypeModel
from protofast.pruning import prune_prototypes

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)
IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def normalised(images):
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize(
    ("kind", "activation"),
    [(PPNet, "log"), (PPNet, "linear"), (PPNet, reciprocal), (TESNet, "log")],
)
def test_it_gives_what_the_network_gives(kind, activation, accelerated) -> None:
    network = kind(prototype_activation_function=activation).eval()
    logits, _ = network(normalised(IMAGES))
    maps = network.push_forward(normalised(IMAGES))[1]
    if accelerated:
        protofast.accelerate(network)
    model = interop.from_normalized(nn.DataParallel(network), MEAN, STD)
    assert not model.training
    output = model(IMAGES)
    assert torch.allclose(output.logits, logits, atol=1e-5)
    assert torch.allclose(output.distances, maps.flatten(2).amin(2), atol=1e-5)
    assert torch.allclose(model.contributions(output).sum(2), output.logits, atol=1e-5)
    features = model.features(IMAGES)
    similarities = model.similarity_map(features)
    assert torch.allclose(similarities.flatten(2).amax(2), output.activations, atol=1e-5)
    at = similarities.flatten(2).gather(2, output.locations.unsqueeze(2))[:, :, 0]
    assert torch.allclose(at, output.activations, atol=1e-5)
    index = torch.tensor([[3, 0]]).expand(6, 2)
    assert torch.equal(model.similarity_map(features, index), similarities[:, [3, 0]])
    limits = output.distances.double().median(dim=0).values
    near = model.nearest_patch_within(features, limits)
    plainly = PrototypeModel.nearest_patch_within(model, features, limits)
    assert all(torch.equal(a, b) for a, b in zip(near, plainly, strict=True))
    assert model.prototype_class.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert model.input_size == (32, 32)
    assert model.receptive_field().box(5) == (6, 6, 17, 17)
    assert torch.equal(model.logits_only()(IMAGES), output.logits)


def test_projection_and_pruning_reach_the_network() -> None:
    network = PPNet().eval()
    model = interop.from_normalized(network, MEAN, STD)
    batch = SimpleNamespace(
        images=torch.rand(30, 3, 32, 32), labels=torch.arange(30) % 3, index=torch.arange(30)
    )
    projection = protofast.project_prototypes(model, [batch])
    assert torch.equal(model.prototypes, network.prototype_vectors.flatten(1))
    _, distances = protofast.accelerate(network)(normalised(batch.images))
    assert (distances[projection.images, torch.arange(12)] == 0).all()
    pruning = prune_prototypes(model, [batch], k=6, threshold=3)
    assert network.num_prototypes == len(pruning.keep) == model.num_prototypes < 12
    assert len(model.prototype_class) == len(pruning.keep)
    assert torch.isfinite(model(IMAGES).logits).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"Focal\.forward"):
        interop.from_normalized(Focal(), MEAN, STD)
    with pytest.raises(ValueError, match="several patches"):
        interop.from_normalized(PPNet((12, 8, 2, 2)), MEAN, STD)
    with pytest.raises(TypeError, match="prototype_vectors"):
        interop.from_normalized(nn.Linear(1, 1), MEAN, STD)
    with pytest.raises(NotImplementedError, match="prune_prototypes"):
        interop.from_normalized(TESNet(), MEAN, STD).prune(torch.tensor([0]))
    with pytest.raises(ValueError, match="must lie in"):
        interop.from_normalized(PPNet(), MEAN, STD)(IMAGES * 255)
