"""One attacked image: its numbers, its default target, and its figure."""

from pathlib import Path

import pytest
import torch
from patch_models import image_of_cells, map_model, patch_model, random_images
from PIL import Image

from protofast.audits.attack_figure import save_attack_figure
from protofast.audits.attacked_image import attack_image, farthest_cell
from protofast.audits.cells import chosen_cells, pixels_of_cells
from protofast.errors import DataError, SettingsError


def test_what_is_said_of_an_attack_is_what_the_model_says():
    model = patch_model()
    image = random_images(1, 28, 35)[0]
    targets = chosen_cells([(6, 0), (6, 1)], (7, 8))
    attacked = attack_image(model, image, prototype=4, targets=targets, epsilon=0.1, seed=2)
    assert (attacked.prototype, attacked.prototype_class) == (4, 1)
    assert torch.equal(attacked.targets, targets)
    assert torch.equal(attacked.clean.image, image.float() / 255)
    for state in (attacked.clean, attacked.attacked):
        output = model(state.image[None])
        features = model.features(state.image[None])
        similarity_map = model.similarity_map(features)[0, 4]
        torch.testing.assert_close(state.map, similarity_map, rtol=0, atol=1e-12)
        assert state.similarity == pytest.approx(float(output.activations[0, 4]), abs=1e-9)
        assert state.place == divmod(int(output.locations[0, 4]), 8)
        order = output.activations[0].argsort(descending=True).tolist()
        assert order.index(4) + 1 == state.rank
        assert state.predicted == int(output.logits.argmax())
        assert state.probability == pytest.approx(float(output.logits.softmax(1).max()))
        assert state.in_target == pytest.approx(float(similarity_map[targets].max()))
        assert state.in_source == pytest.approx(float(similarity_map[attacked.sources].max()))
    noise = (attacked.attacked.image - attacked.clean.image).abs()
    assert noise.max() <= 0.1 + 1e-7
    assert noise[:, :24].max() == 0  # the last row of cells alone


@pytest.mark.parametrize("at_source", [True, False])
def test_noise_may_be_allowed_where_the_prototype_was(at_source):
    targets = chosen_cells([(6, 7)], (7, 8))
    image = image_of_cells((1, 1, 110), grid=(7, 8))
    attacked = attack_image(map_model(), image, targets=targets, noise_at_source=at_source)
    noise = (attacked.attacked.image - attacked.clean.image).abs().amax(dim=0)
    source = pixels_of_cells(attacked.sources, (28, 32))
    target = pixels_of_cells(targets, (28, 32))
    assert noise[~(source | target)].max() == 0
    assert noise[target].max() > 0
    assert (noise[source].max() > 0) == at_source
    assert (attacked.attacked.in_source < attacked.clean.in_source) == at_source


def test_by_default_the_strongest_prototype_goes_to_the_farthest_cell():
    model, image = map_model(), image_of_cells((1, 1, 106))
    attacked = attack_image(model, image)
    assert attacked.prototype == 0
    assert attacked.targets.nonzero().tolist() == [[6, 6]]
    assert attacked.clean.place == (1, 1)
    assert attacked.moved  # 100 may rise to 108, but the noise is 8/255 of the whole range
    assert attacked.attacked.place == (6, 6)


@pytest.mark.parametrize("size", [(28, 28), (20, 36)])
def test_an_attack_that_fails_says_so(size):
    image = image_of_cells((1, 1, 250), grid=(size[0] // 4, size[1] // 4))
    attacked = attack_image(map_model(), image)
    assert not attacked.moved
    assert attacked.attacked.place == (1, 1)
    assert attacked.attacked.in_target > attacked.clean.in_target


def test_the_farthest_cell_is_outside_the_sources():
    values = torch.zeros(3, 5)
    values[0, 1] = 1
    sources = torch.zeros(3, 5, dtype=torch.bool)
    assert farthest_cell(values, sources).nonzero().tolist() == [[2, 4]]
    sources[:, 4] = True
    assert farthest_cell(values, sources).nonzero().tolist() == [[2, 3]]
    assert farthest_cell(values, torch.ones_like(sources)).sum() == 1


def test_what_cannot_be_attacked():
    model = map_model()
    with pytest.raises(DataError, match="prototype 0 is equally similar"):
        attack_image(model, image_of_cells())
    with pytest.raises(ValueError, match="the model has prototypes 0 to 1"):
        attack_image(model, image_of_cells((1, 1, 200)), prototype=2)
    for size in ((3, 3), (1, 7), (7,)):  # the last two would broadcast
        targets = torch.ones(size, dtype=torch.bool)
        for at_source in (False, True):
            with pytest.raises(ValueError, match=r"targets must be bool \[7, 7\]"):
                attack_image(
                    model,
                    image_of_cells((1, 1, 200)),
                    targets=targets,
                    noise_at_source=at_source,
                )
    broken = patch_model()
    broken.backbone.bias.fill_(torch.nan)
    with pytest.raises(DataError, match="are not finite"):
        attack_image(broken, random_images(1, 28, 28)[0], prototype=0)


@pytest.mark.parametrize("name", ["figure.png", "figure.svg", "figure.pdf"])
def test_the_figure_is_drawn_and_always_the_same(tmp_path: Path, name: str):
    image = image_of_cells((1, 1, 110), grid=(5, 9))
    targets = chosen_cells([(4, 8), (3, 0)], (5, 9))  # no rectangle
    attacked = attack_image(map_model(), image, targets=targets)
    classes = ["$x_{", "鳥 \u202e<b>\n\x00" * 40]
    paths = [tmp_path / folder / name for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        assert save_attack_figure(path, attacked, classes, prototypes=2) == path
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if name.endswith("png"):
        with Image.open(paths[0]) as drawn:
            assert drawn.width > 1500
            assert len(drawn.convert("RGB").getcolors(1 << 24)) > 100


def test_a_figure_of_another_kind(tmp_path: Path):
    attacked = attack_image(map_model(), image_of_cells((1, 1, 110)), steps=0)
    with pytest.raises(SettingsError, match="must end in"):
        save_attack_figure(tmp_path / "figure.bmp", attacked, ["a", "b"], prototypes=2)
