import math
from typing import Any

import pytest
import torch
from foreign_model import ForeignModel
from torch import Tensor, nn

from protofast.errors import DataError
from protofast.explain import Explanation, explain_image, explain_images
from protofast.models import ProtoPNet, build_backbone


def _model(**options: Any) -> ProtoPNet:
    arguments = {"num_classes": 4, "prototypes_per_class": 3, "depth": 16, "input_size": (64, 64)}
    arguments |= options
    backbone = build_backbone("small", num_channels=arguments.get("num_channels", 3))
    model = ProtoPNet(backbone, **arguments)
    nn.init.normal_(model.last_layer.weight)
    return model


def _adds_up(explanation: Explanation) -> None:
    for part in explanation.classes:
        size = float(part.contributions.abs().sum())
        assert abs(part.total - part.logit) <= 2e-6 * max(1.0, size)
        assert abs(float(part.contributions.sum()) - part.logit) <= 2e-6 * max(1.0, size)
        shown = len(part.shown) + part.own.prototypes + part.others.prototypes
        assert shown == len(part.contributions)
        for term in part.shown:
            product = term.evidence.similarity * term.weight
            assert math.isclose(term.contribution, product, rel_tol=1e-6, abs_tol=1e-9)
            assert term.weight > 0
        order = [term.contribution for term in part.shown]
        assert order == sorted(order, reverse=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metric": "l2", "similarity": "linear"},
        {"metric": "cosine", "similarity": "linear"},
        {"similarity": "exp"},
        {"input_size": (48, 80)},
        {"input_size": (16, 16)},  # a grid of one cell
        {"num_channels": 1},
        {"prototype_class": [0, 0, 2, 2, 2, 3]},  # class 1 has no prototype
        {"prototype_class": [2]},
    ],
    ids=str,
)
def test_contributions_add_up_to_the_logit(options: dict[str, Any]) -> None:
    model = _model(**options)
    images = torch.rand(3, model.num_channels, *model.input_size)
    explained = explain_images(model, images, top=2, classes=3, labels=[1, 2, 0])
    expected = model.eval()(images).logits
    for n, explanation in enumerate(explained):
        _adds_up(explanation)
        torch.testing.assert_close(explanation.logits, expected[n].detach())
        assert explanation.predicted == int(expected[n].argmax())
        assert [1, 2, 0][n] in [part.class_index for part in explanation.classes]
        for evidence in explanation.activated:
            x0, y0, x1, y1 = evidence.box
            height, width = model.input_size
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            top = int(evidence.heatmap.argmax())
            assert x0 <= top % width < x1
            assert y0 <= top // width < y1


def test_a_pruned_model_is_explained_by_what_is_left() -> None:
    model = _model()
    model.prune(torch.tensor([0, 4, 5, 11]))
    explanation = explain_image(model, torch.rand(3, 64, 64), top=9, classes=4)
    _adds_up(explanation)
    assert {evidence.prototype_class for evidence in explanation.activated} == {0, 1, 3}
    without = next(part for part in explanation.classes if part.class_index == 2)
    assert without.own.prototypes == 0


def test_evidence_lies_where_the_similarity_is_largest() -> None:
    model = _model(input_size=(64, 96)).eval()
    images = torch.rand(2, 3, 64, 96)
    features = model.features(images)
    maps = model.similarity_map(features).detach()  # [N, P, H, W]
    for n, explanation in enumerate(explain_images(model, images, top=12)):
        assert len(explanation.activated) == 12
        similarities = [evidence.similarity for evidence in explanation.activated]
        assert similarities == sorted(similarities, reverse=True)
        for evidence in explanation.activated:
            own = maps[n, evidence.prototype]
            assert math.isclose(evidence.similarity, float(own.max()), rel_tol=1e-5)
            assert float(own[evidence.row, evidence.column]) == pytest.approx(float(own.max()))
            assert evidence.location == evidence.row * own.shape[1] + evidence.column


def test_a_prototype_that_is_the_patch_has_the_largest_similarity() -> None:
    model = _model().eval()
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        model.prototypes[5] = model.features(image[None])[0, :, 2, 1]
    first = explain_image(model, image).activated[0]
    assert (first.prototype, first.row, first.column, first.distance) == (5, 2, 1, 0.0)
    assert first.similarity == pytest.approx(math.log(1 / 1e-4))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"similarity": "exp"},
        {"similarity": "linear"},
        {"metric": "l2", "similarity": "linear"},
        {"metric": "dot", "similarity": "linear"},
        {"metric": "cosine", "similarity": "linear"},
    ],
    ids=str,
)
def test_what_is_shown_for_a_class_is_what_looks_most_like_it(options: dict[str, Any]) -> None:
    model = _model(**options).eval()
    model.reset_last_layer()  # 1 to the own class, -0.5 to the others
    images = torch.rand(4, 3, 64, 64)
    activations = model(images).activations.detach()
    for n, explanation in enumerate(explain_images(model, images, top=2, classes=4)):
        for part in explanation.classes:
            own = (model.prototype_class == part.class_index).nonzero()[:, 0]
            ranked = own[activations[n, own].argsort(descending=True)]
            shown = [term.evidence.prototype for term in part.shown]
            assert shown == ranked[:2].tolist()
            assert (part.own.prototypes, part.others.prototypes) == (1, 9)


def test_what_is_not_finite_is_not_explained() -> None:
    image = torch.rand(3, 64, 64)
    image[1, 5, 5] = torch.nan
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]; got values from nan"):
        explain_image(_model(), image)
    model = _model()
    explain_image(model, torch.rand(3, 64, 64))  # the range is looked at once
    with pytest.raises(DataError, match=r"^the image gives logits that are not finite"):
        explain_image(model, image)
    with pytest.raises(DataError, match="image 1 of the 3 gives logits"):
        explain_images(model, torch.stack([torch.rand(3, 64, 64), image, image]))


def test_bytes_and_numbers_mean_the_same_image() -> None:
    model = _model()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    by_bytes, by_numbers = explain_image(model, image), explain_image(model, image / 255)
    assert torch.equal(by_bytes.logits, by_numbers.logits)


def test_the_model_is_left_as_it_was() -> None:
    model = _model().train()
    model.backbone.conv1.eval()  # a frozen part of a model in training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain_image(model, torch.rand(3, 64, 64))
    assert model.training
    assert model.add_on.training
    assert not model.backbone.conv1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_class_and_a_wrong_prediction_still_show_the_truth() -> None:
    model = _model()
    image = torch.rand(3, 64, 64)
    predicted = explain_image(model, image).predicted
    label = (predicted + 1) % 4
    explanation = explain_image(model, image, classes=1, label=label)
    assert [part.class_index for part in explanation.classes] == [predicted, label]


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.rand(64, 64), {}, r"must be \[channels, S, T\]"),
        (torch.rand(1, 64, 64), {}, r"must be \[N, 3, S, T\]"),
        (torch.rand(3, 64, 64), {"top": 0}, "at least 1"),
        (torch.rand(3, 64, 64), {"label": 4}, r"labels must be in 0 \.\.\. 3|labels must be in 0"),
    ],
)
def test_wrong_arguments_are_named(image: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain_image(_model(), image, **options)
    with pytest.raises(TypeError, match="uint8 or floating"):
        explain_image(_model(), torch.zeros(3, 64, 64, dtype=torch.int64))


def test_prototypes_without_classes_are_explained_through_the_protocol() -> None:
    model = ForeignModel(nn.AvgPool2d(2), depth=3, input_size=(8, 8))
    explanation = explain_image(model, torch.rand(3, 8, 8), top=2)
    _adds_up(explanation)
    assert all(part.others.prototypes == 0 for part in explanation.classes)  # there is no other
    assert explanation.activated[0].prototype_class is None
