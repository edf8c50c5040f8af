"""`accelerate`: the originals' numbers and gradients, and refusals where it cannot give them."""

import copy

import pytest
import torch
from stand_ins import Focal, PPNet, TESNet, WithMaps, reciprocal
from torch import nn

import protofast

ACTIVATIONS = ["log", "linear", reciprocal]
SHAPES = [(12, 8, 1, 1), (12, 8, 2, 3)]


def exact(model):
    """The stand-in's own code in float64, with the same numbers."""
    return copy.deepcopy(protofast.restore(copy.deepcopy(model))).double()


def relative(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "activation"),
    [(PPNet, "log"), (PPNet, "linear"), (PPNet, reciprocal), (TESNet, "log")],
)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_the_originals(kind, activation, shape, training) -> None:
    model = protofast.accelerate(kind(shape, prototype_activation_function=activation))
    reference = exact(model)
    model.train(training), reference.train(training)
    images = torch.rand(5, 3, 32, 32)
    for name in ("__call__", "push_forward", "prototype_distances"):
        found, expected = (
            getattr(model, name)(images),
            getattr(reference, name)(images.double()),
        )
        if isinstance(found, torch.Tensor):
            found, expected = (found,), (expected,)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == torch.float32
            assert one.shape == other.shape
            assert (one.double() - other).abs().max() < 1e-5

    def loss(logits, distances):
        return logits.logsumexp(1).mean() + distances.min(1).values.mean()

    # On the same features: the backbones would differ by their own rounding.
    features = model.conv_features(images).detach()
    for network, values in ((model, features), (reference, features.double())):
        network.zero_grad()
        values.requires_grad_()
        network.conv_features = lambda images: images
        loss(*network(values)).backward()
        values.gradient = values.grad.clone()
        del network.conv_features
        network.seen = values
    assert relative(model.seen.gradient, reference.seen.gradient) < 1e-5
    for name in ("prototype_vectors", "last_layer.weight"):
        found, expected = (
            dict(network.named_parameters())[name].grad for network in (model, reference)
        )
        assert relative(found, expected) < 1e-5


def test_a_pushed_patch_has_distance_zero() -> None:
    model = protofast.accelerate(PPNet()).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        model.prototype_vectors.data[3] = model.conv_features(images)[1, :, 2:3, 1:2]
        logits, distances = model(images)
        maps = model.push_forward(images)[1]
    assert distances[1, 3] == 0
    assert maps[1, 3, 2, 1] == 0
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("kind", [PPNet, TESNet])
def test_state_dict_and_printed_form_stay(kind) -> None:
    model = kind()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes, printed = set(model.__dict__), repr(model)
    assert protofast.accelerate(model) is model
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert set(model.__dict__) == attributes
    assert repr(model) == printed
    assert isinstance(model, kind)
    assert type(model).__name__ == kind.__name__


def test_restore_undoes_and_twice_is_harmless() -> None:
    model = PPNet()
    once = type(protofast.accelerate(model))
    assert type(protofast.accelerate(model)) is once is type(protofast.accelerate(PPNet()))
    assert protofast.restore(model) is model
    assert type(model) is PPNet
    assert type(protofast.restore(model)) is PPNet


def test_images_are_a_keyword_as_in_the_original() -> None:
    model = protofast.accelerate(PPNet()).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x=images)[0], model(images)[0])
    with pytest.raises(TypeError):
        model(images, images)


def test_a_pruned_model_is_accelerated_and_an_accelerated_one_pruned() -> None:
    pruned_before, pruned_after = PPNet(), PPNet()
    pruned_after.load_state_dict(pruned_before.state_dict())
    images = torch.rand(2, 3, 32, 32)
    pruned_before.prune_prototypes([0, 5])
    protofast.accelerate(pruned_before)
    protofast.accelerate(pruned_after).prune_prototypes([0, 5])
    for one, other in zip(pruned_before(images), pruned_after(images), strict=True):
        assert torch.equal(one, other)
    assert pruned_before(images)[1].shape == (2, 10)


def test_a_descendants_own_arguments_run_its_own_code() -> None:
    model = WithMaps().eval()
    images = torch.rand(2, 3, 32, 32)
    expected = model(images, return_all_similarities=True)
    protofast.accelerate(model)
    assert len(model(images)) == len(model(images, return_all_similarities=False)) == 2
    assert torch.allclose(model(images, return_all_similarities=True)[2], expected[2])
    assert torch.allclose(model(images, True)[2], expected[2])


def test_half_and_double_models_keep_their_dtypes() -> None:
    images = torch.rand(2, 3, 32, 32)
    for dtype in (torch.bfloat16, torch.float64):
        model = PPNet().eval().to(dtype)
        expected = [value.dtype for value in model(images.to(dtype))]
        found = protofast.accelerate(model)(images.to(dtype))
        assert [value.dtype for value in found] == expected == [dtype, dtype]


def test_autocast() -> None:
    model = protofast.accelerate(PPNet()).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, distances = model(images)
    assert distances.dtype == torch.float32
    assert torch.allclose(logits.float(), model(images)[0], atol=0.2)


def broken(change):
    model = PPNet()
    change(model)
    return model


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (nn.Linear(2, 2), TypeError, "prototype_vectors, add_on_layers"),
        (broken(lambda m: delattr(m, "epsilon")), TypeError, "epsilon"),
        (broken(lambda m: setattr(m, "epsilon", 0.0)), ValueError, "epsilon"),
        (
            broken(lambda m: setattr(m, "prototype_activation_function", "cubic")),
            ValueError,
            "'cubic'",
        ),
        (
            broken(lambda m: setattr(m, "prototype_activation_function", 3)),
            TypeError,
            "prototype_activation_function",
        ),
        (broken(lambda m: m.ones.data.mul_(2)), ValueError, "ones"),
        (broken(lambda m: m.ones.requires_grad_()), ValueError, "ones"),
        (broken(lambda m: setattr(m, "forward", m.forward)), ValueError, "forward is set"),
        (Focal(), ValueError, "Focal.forward does not compute"),
        ("PPNet", TypeError, "torch.nn.Module"),
    ],
)
def test_refusals_name_the_reason_and_change_nothing(model, error, words) -> None:
    kind = type(model)
    with pytest.raises(error, match=words):
        protofast.accelerate(model)
    assert type(model) is kind


@pytest.mark.parametrize("kind", [PPNet, Focal])
@pytest.mark.parametrize("change", ["zero last layer", "nan last layer", "nan prototype"])
def test_numbers_that_hide_a_difference_do_not_deceive(kind, change) -> None:
    model = kind()
    with torch.no_grad():
        if "last layer" in change:
            model.last_layer.weight.fill_(0 if "zero" in change else float("nan"))
        else:
            model.prototype_vectors[:] = float("nan")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if kind is PPNet:
        assert type(protofast.accelerate(model)) is not PPNet
    else:
        with pytest.raises(ValueError, match=r"Focal\.forward does not compute"):
            protofast.accelerate(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())


def test_an_activation_that_becomes_unknown_is_an_error() -> None:
    model = protofast.accelerate(PPNet())
    model.prototype_activation_function = "cubic"
    with pytest.raises(ValueError, match="cubic"):
        model(torch.rand(1, 3, 32, 32))


def test_checking_leaves_random_numbers_and_parameters_alone() -> None:
    model = PPNet()
    state, grads = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
    protofast.accelerate(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())
