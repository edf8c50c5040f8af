import copy
import io
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from protofast.losses import classification_loss, cluster_loss, last_layer_l1, separation_loss
from protofast.models import Output, ProtoPNet, build_backbone

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def small_model(**options):
    torch.manual_seed(0)
    arguments = {
        "num_classes": 4,
        "prototypes_per_class": 3,
        "depth": 16,
        "input_size": (48, 64),
        **options,
    }
    return ProtoPNet(build_backbone("small"), **arguments)


def original_forward(z, prototypes, weight, similarity):
    """PPNet's head (model.py), literally: expanded distance, relu, max-pool, similarity, linear."""
    p = prototypes[:, :, None, None]
    ones = torch.ones_like(p)
    distances = F.conv2d(z**2, ones) - 2 * F.conv2d(z, p) + (p**2).sum(dim=(1, 2, 3)).view(-1, 1, 1)
    distances = F.relu(distances)
    nearest = -F.max_pool2d(-distances, kernel_size=distances.shape[2:])
    nearest = nearest.view(nearest.shape[0], -1)
    activations = -nearest
    if similarity == "log":
        activations = torch.log((nearest + 1) / (nearest + 1e-4))
    return activations @ weight.T, activations, nearest


def original_loss(logits, nearest, labels, identity, weight, max_dist):
    """PPNet's training loss (train_and_test.py), literally; identity is one-hot [P, C]."""
    own = identity[:, labels].T
    inverted, _ = torch.max((max_dist - nearest) * own, dim=1)
    cluster = torch.mean(max_dist - inverted)
    inverted, _ = torch.max((max_dist - nearest) * (1 - own), dim=1)
    separation = torch.mean(max_dist - inverted)
    l1 = (weight * (1 - identity.T)).norm(p=1)
    return F.cross_entropy(logits, labels) + 0.8 * cluster - 0.08 * separation + 1e-4 * l1


def loss_of(model, output, labels):
    classes = model.prototype_class
    return (
        classification_loss(output.logits, labels)
        + 0.8 * cluster_loss(output.distances, labels, classes)
        - 0.08 * separation_loss(output.distances, labels, classes)
        + 1e-4 * last_layer_l1(model.last_layer.weight, classes)
    )


@pytest.mark.parametrize("similarity", ["log", "linear"])
def test_the_originals_formulas_losses_and_gradients(similarity):
    model = small_model(similarity=similarity)
    with torch.no_grad():
        model.last_layer.weight.add_(0.1 * torch.randn_like(model.last_layer.weight))
    latent, labels = torch.rand(6, 192, 3, 4), torch.tensor([0, 1, 2, 3, 3, 0])
    output = model.classify(model.add_on(latent))
    loss = loss_of(model, output, labels)
    loss.backward()

    state = {
        name: parameter.detach().double().requires_grad_()
        for name, parameter in model.named_parameters()
        if not name.startswith("backbone")
    }
    first = F.conv2d(latent.double(), state["add_on.0.weight"], state["add_on.0.bias"])
    z = F.conv2d(F.relu(first), state["add_on.2.weight"], state["add_on.2.bias"]).sigmoid()
    weight = state["last_layer.weight"]
    logits, activations, nearest = original_forward(
        z, state["prototype_layer.prototypes"], weight, similarity
    )
    identity = torch.zeros(12, 4, dtype=torch.float64)
    identity[torch.arange(12), torch.arange(12) // 3] = 1
    expected = original_loss(logits, nearest, labels, identity, weight, max_dist=16)
    expected.backward()

    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(output.logits, logits, **close)
    torch.testing.assert_close(output.activations, activations, **close)
    torch.testing.assert_close(output.distances, nearest, **close)
    torch.testing.assert_close(loss, expected, **close)
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone"):
            torch.testing.assert_close(parameter.grad, state[name].grad, **close)


def test_double_precision_agrees_to_its_own_precision():
    model = small_model().double()
    z = torch.rand(5, 16, 3, 4, dtype=torch.float64)
    output = model.classify(z)
    logits, _, nearest = original_forward(z, model.prototypes, model.last_layer.weight, "log")
    assert output.logits.dtype == torch.float64
    torch.testing.assert_close(output.distances, nearest, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output.logits, logits, rtol=1e-12, atol=1e-12)
    assert model(torch.rand(2, 3, 48, 64)).logits.dtype == torch.float64


def test_add_on_layers_are_the_papers():
    def convolutions(kind, channels, depth):
        model = ProtoPNet(
            nn.Identity(), num_classes=2, depth=depth, add_on=kind, backbone_depth=channels
        )
        names = [type(layer).__name__ for layer in model.add_on]
        shapes = {
            index: (layer.in_channels, layer.out_channels)
            for index, layer in enumerate(model.add_on)
            if isinstance(layer, nn.Conv2d)
        }
        return names, shapes

    names, shapes = convolutions("regular", 512, 128)
    assert names == ["Conv2d", "ReLU", "Conv2d", "Sigmoid"]
    assert shapes == {0: (512, 128), 2: (128, 128)}
    names, shapes = convolutions("bottleneck", 512, 128)
    assert names == ["Conv2d", "ReLU"] * 3 + ["Conv2d", "Sigmoid"]
    assert shapes == {0: (512, 256), 2: (256, 256), 4: (256, 128), 6: (128, 128)}
    names, shapes = convolutions("bottleneck", 100, 128)
    assert names == ["Conv2d", "ReLU", "Conv2d", "Sigmoid"]
    assert shapes == {0: (100, 128), 2: (128, 128)}
    with pytest.raises(ValueError, match="'regular' or 'bottleneck'; got 'identity'"):
        convolutions("identity", 8, 8)


def test_initialisation_is_the_papers():
    model = ProtoPNet(build_backbone("small"), num_classes=20, depth=128)
    assert model.num_prototypes == 200
    assert model.prototype_class.tolist() == [j // 10 for j in range(200)]
    own = torch.zeros(20, 200)
    own[model.prototype_class, torch.arange(200)] = 1
    assert torch.equal(model.last_layer.weight, 1.5 * own - 0.5)
    assert model.last_layer.bias is None
    for index in (0, 2):
        convolution = model.add_on[index]
        assert (convolution.bias == 0).all()
        # Kaiming normal, fan_out, relu: variance 2 / out_channels.
        assert convolution.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.03)


def test_images_are_normalised_inside():
    model = small_model().eval()
    images = torch.rand(2, 3, 48, 64)
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.no_grad():
        expected = model.add_on(model.backbone((images - mean) / std))
        torch.testing.assert_close(model.features(images), expected)
    grey = ProtoPNet(build_backbone("small", num_channels=1), num_classes=2, num_channels=1)
    assert grey.mean.tolist() == pytest.approx([sum(IMAGENET_MEAN) / 3])
    assert grey(torch.rand(2, 1, 32, 48)).logits.shape == (2, 2)


def test_output_parts_belong_together():
    model = small_model().eval()
    images = torch.rand(3, 3, 48, 64)
    with torch.no_grad():
        output = model(images)
        features = model.features(images)
    assert isinstance(output, Output)
    assert output.logits.shape == (3, 4)
    assert output.activations.shape == output.distances.shape == (3, 12)
    assert output.locations.shape == (3, 12)
    assert output.locations.dtype == torch.int64
    assert int(output.locations.max()) < 12
    maps = model.similarity_map(features)
    torch.testing.assert_close(maps.flatten(2).amax(2), output.activations)
    index = torch.tensor([[1, 5], [0, 0], [11, 2]])
    chosen = model.similarity_map(features, index)
    torch.testing.assert_close(chosen[2, 0], maps[2, 11])
    contributions = model.contributions(output)
    assert contributions.shape == (3, 4, 12)
    torch.testing.assert_close(contributions.sum(dim=2), output.logits)
    assert torch.equal(model.logits_only()(images), output.logits)
    for got, expected in zip(model.classify(features), output, strict=True):
        assert torch.equal(got, expected)


def test_logits_stay_float32_under_autocast():
    model = small_model()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.rand(2, 3, 48, 64))
    assert output.logits.dtype == output.activations.dtype == torch.float32
    output.logits.sum().backward()
    assert model.last_layer.weight.grad.dtype == torch.float32


def test_compiles_without_a_graph_break():
    model = small_model().eval()
    images = torch.rand(2, 3, 48, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(images), model(images), strict=True):
        torch.testing.assert_close(got, expected)
    model.train()
    loss_of(model, compiled(images), torch.tensor([0, 2])).backward()
    assert model.prototypes.grad.abs().sum() > 0


def test_pruning_keeps_the_order_and_what_belongs_to_each_prototype():
    model = small_model().eval()
    images = torch.rand(2, 3, 48, 64)
    before = model(images)
    contributions = model.contributions(before)
    keep = torch.tensor([10, 0, 3, 7])
    model.last_layer.weight.requires_grad_(False)
    model.prune(keep)
    keep = [0, 3, 7, 10]
    assert model.num_prototypes == model.last_layer.in_features == 4
    assert model.prototype_class.tolist() == [0, 1, 2, 3]
    after = model(images)
    torch.testing.assert_close(after.activations, before.activations[:, keep])
    torch.testing.assert_close(model.contributions(after), contributions[:, :, keep])
    assert isinstance(model.prototypes, nn.Parameter)
    assert model.prototypes.requires_grad
    assert not model.last_layer.weight.requires_grad
    assert set(dict(model.named_parameters())) == set(dict(small_model().named_parameters()))


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        (torch.tensor([], dtype=torch.int64), ValueError, "at least one"),
        (torch.tensor([1, 1]), ValueError, r"distinct prototypes, at least one; got \[1, 1\]"),
        (torch.tensor([0, 12]), ValueError, r"keep must lie in 0...11; got 0...12"),
        (torch.tensor([-1, 2]), ValueError, r"got -1...2"),
        ([0, 1], TypeError, r"a tensor int64 \[K\] .*; got \[0, 1\]"),
        (torch.ones(12, dtype=torch.bool), TypeError, r"of a mask: mask.nonzero"),
    ],
)
def test_pruning_checks_what_to_keep(keep, error, message):
    model = small_model()
    with pytest.raises(error, match=message):
        model.prune(keep)
    assert model.num_prototypes == 12


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("options", [{}, {"add_on": "bottleneck", "metric": "l2", "eps": 1e-3}])
def test_config_and_state_dict_rebuild_the_model(pruned, options):
    model = small_model(**options).eval()
    if pruned:
        model.prune(torch.tensor([2, 3, 11]))
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    config = json.loads(json.dumps(model.config))
    other = ProtoPNet.from_config(config).eval()
    assert other.config == model.config
    other.load_state_dict(torch.load(stored, weights_only=True))
    images = torch.rand(2, 3, 48, 64)
    for got, expected in zip(other(images), model(images), strict=True):
        assert torch.equal(got, expected)
    assert other.receptive_field() == model.receptive_field()


def test_state_dict_keys_are_documented_ones():
    keys = [key for key in small_model().state_dict() if not key.startswith("backbone.")]
    assert sorted(keys) == [
        "add_on.0.bias",
        "add_on.0.weight",
        "add_on.2.bias",
        "add_on.2.weight",
        "last_layer.weight",
        "mean",
        "prototype_class",
        "prototype_layer.prototypes",
        "std",
    ]


def test_deep_copies_are_independent():
    model = small_model().eval()
    images = torch.rand(2, 3, 48, 64)
    other = copy.deepcopy(model)
    expected = model(images).logits
    with torch.no_grad():
        other.prototypes.zero_()
    other.prune(torch.tensor([0, 11]))
    assert torch.equal(model(images).logits, expected)


class Patches(nn.Module):
    """A backbone of somebody's own, with a batch norm that must not move when it is tried out."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 7, 8, stride=8)
        self.norm = nn.BatchNorm2d(7)

    def forward(self, images):
        return self.norm(self.convolution(images))


def test_any_module_is_a_backbone():
    backbone = Patches()
    model = ProtoPNet(backbone, num_classes=3, depth=8, input_size=(32, 40))
    assert model.backbone_depth == 7
    assert int(backbone.norm.num_batches_tracked) == 0
    assert backbone.training
    assert model(torch.rand(2, 3, 32, 40)).logits.shape == (2, 3)
    assert model.receptive_field() is None
    assert model.config["backbone"] is None
    with pytest.raises(ValueError, match=r"pass the module.*from_config\(config, backbone=...\)"):
        ProtoPNet.from_config(model.config)
    other = ProtoPNet.from_config(model.config, backbone=Patches())
    other.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 32, 40)
    assert torch.equal(other.eval()(images).logits, model.eval()(images).logits)
    with pytest.raises(ValueError, match=r"latent map \[N, channels, H, W\]; got \[1, 7680\]"):
        ProtoPNet(nn.Flatten(), num_classes=3, input_size=(64, 40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes and num_channels must be at least 1; got 0 and 3"),
        ({"prototypes_per_class": 0}, "prototypes_per_class must be at least 1; got 0"),
        ({"prototype_class": []}, "at least one prototype; got none"),
        ({"prototype_class": [0, 4]}, r"prototype_class must lie in 0...3; got 0...4"),
        ({"depth": 0}, "num_prototypes and depth must be at least 1"),
        ({"metric": "cosine"}, "allows similarity 'linear' only"),
        ({"input_size": 224}, r"input_size must be \(height, width\) in pixels; got 224"),
        ({"input_size": (0, 5)}, r"input_size must be \(height, width\) in pixels; got \(0, 5\)"),
        ({"mean": [0.5]}, "mean must have one number for each of the 3 channels; got 1"),
        ({"std": [0.5, 0.0, 0.5]}, r"std must be positive; got \[0.5, 0.0, 0.5\]"),
    ],
)
def test_useless_options(options, message):
    with pytest.raises(ValueError, match=message):
        small_model(**options)


def test_classes_may_have_different_numbers_of_prototypes():
    model = small_model(prototype_class=[3, 0, 0, 1])
    assert model.prototype_class.tolist() == [3, 0, 0, 1]
    assert model.last_layer.weight[:, 0].tolist() == [-0.5, -0.5, -0.5, 1.0]
    labels = torch.tensor([0, 1, 2, 3])
    loss = loss_of(model, model(torch.rand(4, 3, 48, 64)), labels)  # class 2 has none
    loss.backward()
    assert loss.isfinite()
    assert model.prototypes.grad.isfinite().all()
