import pytest
import torch
from torch import nn

from protofast.models import Output, ProtoPNet, PrototypeModel, build_backbone
from protofast.ops import nearest_patch, similarity_map


class CosineNetwork(PrototypeModel):
    """A prototype network of somebody else's: cosine prototypes that belong to no class."""

    def __init__(self):
        super().__init__(num_classes=3, num_channels=1, input_size=(16, 16), mean=[0.5], std=[1])
        self.patches = nn.Conv2d(1, 6, 4, stride=4)
        self.vectors = nn.Parameter(torch.randn(5, 6))
        self.head = nn.Linear(5, 3)

    @property
    def prototypes(self):
        return self.vectors

    def features(self, images):
        return self.patches(self.normalise(images))

    def classify(self, features):
        nearest = nearest_patch(features, self.vectors, metric="cosine", similarity="linear")
        return Output(self.head(nearest.activations), *nearest)

    def similarity_map(self, features, index=None):
        return similarity_map(
            features, self.vectors, index=index, metric="cosine", similarity="linear"
        )

    def contributions(self, output):
        return output.activations.unsqueeze(1) * self.head.weight


def test_another_network_needs_only_the_abstract_parts():
    model = CosineNetwork()
    images = torch.rand(2, 1, 16, 20)
    output = model(images)
    assert output.logits.shape == (2, 3)
    assert model.num_prototypes == 5
    assert model.prototype_class is None
    assert model.receptive_field() is None
    assert torch.equal(model.logits_only()(images), output.logits)
    assert set(model.state_dict()) >= {"mean", "std"}
    assert "prototype_class" not in model.state_dict()
    with pytest.raises(NotImplementedError, match="CosineNetwork cannot be pruned"):
        model.prune(torch.tensor([0]))


def test_chosen_prototypes_give_what_all_give():
    torch.manual_seed(0)
    cosine = CosineNetwork()
    own = ProtoPNet(
        build_backbone("small"), num_classes=3, prototypes_per_class=7, depth=33, metric="l2"
    )
    for model in (cosine, own):
        features = torch.rand(4, model.prototypes.shape[1], 5, 3)
        everything = model.classify(features)[1:]
        for got, expected in zip(model.nearest_patch(features), everything, strict=True):
            assert torch.equal(got, expected)
        for chosen in ([3, 0], [4], []):
            chosen = torch.tensor(chosen, dtype=torch.int64)
            found = model.nearest_patch(features, chosen)
            for got, expected in zip(found, everything, strict=True):
                assert torch.equal(got, expected[:, chosen])


def test_a_network_that_lacks_a_part_is_refused():
    class Half(PrototypeModel):
        def features(self, images):
            return images

    with pytest.raises(TypeError, match="abstract"):
        Half(num_classes=2)


def test_logits_only_shares_weights_and_modes():
    model = CosineNetwork()
    plain = model.logits_only()
    plain.eval()
    assert not model.training
    assert {id(p) for p in plain.parameters()} == {id(p) for p in model.parameters()}


@pytest.fixture
def model():
    return ProtoPNet(
        build_backbone("small"), num_classes=2, prototypes_per_class=1, depth=8, input_size=(32, 32)
    ).eval()


def test_bytes_are_refused_with_what_to_do(model):
    with pytest.raises(TypeError, match=r"got torch.uint8: of bytes, pass images.float\(\) / 255"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"images must be a torch.Tensor; got list"):
        model([[1.0]])


def test_shapes_and_channels_are_named(model):
    with pytest.raises(ValueError, match=r"images of 3 channel\(s\); got 1 in .*\[2, 1, 3"):
        model(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"\[N, 3, height, width\]; got \[3, 32, 32\]"):
        model(torch.zeros(3, 32, 32))


@pytest.mark.parametrize("images", [torch.rand(1, 3, 32, 32) * 255, torch.randn(1, 3, 32, 32) * 2])
def test_a_range_that_cannot_be_right_is_named(model, images):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]; got values from .*normalises"):
        model(images)


def test_room_for_attacks_and_one_look_only(model):
    images = torch.rand(1, 3, 32, 32) * 1.2 - 0.1
    assert model(images).logits.isfinite().all()
    model(images * 100)  # looked at once: a GPU would have to be waited for
    model(torch.rand(0, 3, 32, 32))


def test_other_floating_dtypes_of_images(model):
    images = torch.rand(1, 3, 32, 32)
    for dtype in (torch.float64, torch.bfloat16):
        assert model(images.to(dtype)).logits.dtype == torch.float32
    assert model.to(torch.bfloat16)(images).logits.isfinite().all()


def test_function_transforms_see_through_the_checks(model):
    images = torch.rand(3, 3, 32, 32)
    assert torch.func.jacrev(lambda image: model.normalise(image[None]).sum())(images[0]).shape == (
        3,
        32,
        32,
    )
    normalised = torch.vmap(lambda image: model.normalise(image[None])[0])(images)
    torch.testing.assert_close(normalised, model.normalise(images))
