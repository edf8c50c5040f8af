import copy
import math

import pytest
import torch

from protofast import NearestPatch
from protofast.layers import PrototypeLayer
from protofast.similarities import (
    ALLOWED_PAIRS,
    exp_similarity,
    linear_similarity,
    log_similarity,
    similarity,
)


def test_prototypes_start_in_the_unit_interval():
    torch.manual_seed(0)
    layer = PrototypeLayer(50, 40)
    assert layer.prototypes.shape == (50, 40)
    assert layer.prototypes.requires_grad
    assert 0 <= layer.prototypes.min() < 0.01
    assert 0.99 < layer.prototypes.max() < 1
    assert list(layer.state_dict()) == ["prototypes"]


@pytest.mark.parametrize(("metric", "name"), ALLOWED_PAIRS)
def test_activations_are_the_maxima_of_the_similarity_map(metric, name):
    torch.manual_seed(1)
    layer = PrototypeLayer(5, 8, metric=metric, similarity=name)
    features = torch.rand(3, 8, 4, 6)
    activations, distances, locations = layer(features)
    maps = layer.similarity_map(features)
    assert maps.shape == (3, 5, 4, 6)
    torch.testing.assert_close(activations, maps.flatten(2).amax(2))
    torch.testing.assert_close(distances, layer.distance_map(features).flatten(2).amin(2))
    torch.testing.assert_close(
        maps.flatten(2).gather(2, locations.unsqueeze(2))[..., 0], activations
    )
    torch.testing.assert_close(activations, similarity(distances, name))


def test_maps_of_chosen_prototypes():
    layer = PrototypeLayer(5, 8)
    features = torch.rand(2, 8, 3, 3)
    index = torch.tensor([[4, 0], [2, 2]])
    everything = layer.similarity_map(features)
    chosen = layer.similarity_map(features, index)
    torch.testing.assert_close(chosen[0], everything[0, [4, 0]])
    torch.testing.assert_close(chosen[1], everything[1, [2, 2]])
    distances = layer.distance_map(features)
    torch.testing.assert_close(layer.distance_map(features, index)[1, 0], distances[1, 2])
    torch.testing.assert_close(layer.mean_distance(features), distances.mean(dim=(2, 3)))


def test_gradients_reach_features_and_prototypes():
    layer = PrototypeLayer(4, 6)
    features = torch.rand(2, 6, 3, 3, requires_grad=True)
    result = layer(features)
    assert isinstance(result, NearestPatch)
    result.activations.sum().backward()
    assert features.grad.abs().sum() > 0
    assert layer.prototypes.grad.abs().sum() > 0


def test_copies_are_independent_and_keep_their_options():
    layer = PrototypeLayer(4, 6, metric="l2", similarity="exp", eps=1e-3)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.prototypes.zero_()
    assert layer.prototypes.abs().sum() > 0
    assert (other.metric, other.similarity, other.eps) == ("l2", "exp", 1e-3)


def test_repr_names_the_options():
    assert repr(PrototypeLayer(20, 64)) == (
        "PrototypeLayer(num_prototypes=20, depth=64, metric='squared_l2', similarity='log', "
        "eps=0.0001)"
    )


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 8), {}, "num_prototypes and depth must be at least 1; got 0 and 8"),
        ((5, -1), {}, "at least 1"),
        ((5, 8), {"metric": "l1"}, "metric must be one of"),
        ((5, 8), {"similarity": "log2"}, "similarity must be one of"),
        ((5, 8), {"metric": "dot"}, "allows similarity 'linear' only"),
        ((5, 8), {"eps": 0.0}, "eps must lie strictly between 0 and 1"),
    ],
)
def test_useless_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        PrototypeLayer(*arguments, **options)


def test_features_of_another_depth_name_both():
    with pytest.raises(ValueError, match=r"same depth D; got 7 and 8.*\[2, 7, 3, 3\].*\[5, 8\]"):
        PrototypeLayer(5, 8)(torch.rand(2, 7, 3, 3))


def test_similarities_are_the_papers_formulas():
    distances = torch.tensor([0.0, 1e-6, 0.3, 7.0, 500.0], dtype=torch.float64)
    expected = [math.log((d + 1) / (d + 1e-4)) for d in distances.tolist()]
    torch.testing.assert_close(
        log_similarity(distances), torch.tensor(expected, dtype=torch.float64)
    )
    assert log_similarity(torch.zeros(1)).item() == pytest.approx(math.log(1e4))
    assert torch.equal(linear_similarity(distances), -distances)
    torch.testing.assert_close(exp_similarity(distances), torch.exp(-distances))
    with pytest.raises(ValueError, match="similarity must be one of"):
        similarity(distances, "cubic")
    assert ("cosine", "linear") in ALLOWED_PAIRS
    assert ("cosine", "log") not in ALLOWED_PAIRS


def frozen_and_plain():
    torch.manual_seed(2)
    plain = PrototypeLayer(40, 24).eval()
    return copy.deepcopy(plain).freeze(), plain


def test_a_frozen_layer_gives_the_same_bits():
    frozen, plain = frozen_and_plain()
    features = torch.rand(3, 24, 5, 4)
    assert frozen.is_frozen
    assert not plain.is_frozen
    with torch.no_grad():
        for some in (features, features[:1], features.bfloat16()):
            for a, b in zip(frozen(some), plain(some), strict=True):
                assert torch.equal(a, b)
        for a, b in zip(copy.deepcopy(frozen)(features), plain(features), strict=True):
            assert torch.equal(a, b)
        maps = frozen.similarity_map(features)
        assert torch.equal(maps, plain.similarity_map(features))


def test_freezing_leaves_the_state_dict_alone():
    frozen, plain = frozen_and_plain()
    assert list(frozen.state_dict()) == list(plain.state_dict()) == ["prototypes"]
    plain.load_state_dict(frozen.state_dict())


def test_a_frozen_layer_refuses_training_and_gradients():
    frozen, _ = frozen_and_plain()
    features = torch.rand(1, 24, 5, 4)
    with pytest.raises(RuntimeError, match="has no gradients"):
        frozen(features)  # the prototypes want one
    frozen.requires_grad_(False)
    frozen(features)
    with pytest.raises(RuntimeError, match="has no gradients"):
        frozen(features.requires_grad_())
    frozen.train()
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be trained"):
        frozen(features)
    with pytest.raises(RuntimeError, match=r"call eval\(\)"):
        frozen.freeze()
    frozen.unfreeze().requires_grad_(True)
    frozen(features).activations.sum().backward()
    assert frozen.prototypes.grad.abs().sum() > 0


def load_a_state_dict(layer):
    layer.load_state_dict({"prototypes": torch.rand(40, 24)})


def write_to_data(layer):
    layer.prototypes.data[39, 23] += 1


def prune(layer):
    layer.prototypes = torch.nn.Parameter(layer.prototypes[:30].detach())


def convert(layer):
    layer.double()


@pytest.mark.parametrize("change", [load_a_state_dict, write_to_data, prune, convert])
def test_a_frozen_layer_whose_prototypes_changed_is_an_error_until_frozen_again(change):
    frozen, plain = frozen_and_plain()
    for layer in (frozen, plain):
        torch.manual_seed(3)
        change(layer)
    features = torch.rand(2, 24, 5, 4, dtype=plain.prototypes.dtype)
    with torch.no_grad():
        with pytest.raises((RuntimeError, ValueError), match="pack them again"):
            frozen(features)
        for a, b in zip(frozen.freeze()(features), plain(features), strict=True):
            assert torch.equal(a, b)
        assert not frozen.unfreeze().is_frozen
        frozen(features)


def test_a_frozen_layer_compiles_without_graph_breaks():
    frozen, plain = frozen_and_plain()
    features = torch.rand(1, 24, 5, 4)
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for a, b in zip(compiled(features), plain(features), strict=True):
            assert torch.equal(a, b)
