from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

from protofast.data import Splits, load_image
from protofast.errors import RunFolderError, SettingsError
from protofast.explain import explain_image, save_explanation_figure, save_prototype_figure
from protofast.training import RunFolder

HOSTILE = ["$x_{", "a" * 300, "鳥 \u202e<b>\n\x00", "\ud800 &amp;"]


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A loose image file of another size and kind than the run's images."""
    path = tmp_path / "loose photograph.png"
    pixels = torch.randint(0, 256, (90, 120, 4), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_a_loose_image_file_is_explained_and_drawn(
    explained: Path, photograph: Path, suffix: str
) -> None:
    run = RunFolder.open(explained)
    model = run.load_model("best").model
    image = load_image(photograph, model.input_size, model.num_channels)
    explanation = explain_image(model, image, top=3)
    settings = dict(matplotlib.rcParams)
    path = photograph.with_suffix(suffix)
    save_explanation_figure(path, explanation, HOSTILE, run_folder=explained)
    first = path.read_bytes()
    assert dict(matplotlib.rcParams) == settings
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix.lower()]
    assert first.startswith(start)
    save_explanation_figure(path, explanation, HOSTILE, run_folder=explained)
    assert path.read_bytes() == first


def test_prototypes_of_another_checkpoint_are_not_pictured(
    explained: Path, photograph: Path, tmp_path: Path
) -> None:
    run = RunFolder.open(explained)
    name = run.resolve("best")
    model = run.load_model(name).model
    explanation = explain_image(model, load_image(photograph, model.input_size, 3))
    drawn = {}
    for checkpoint in (name, "joint-0", None):
        path = tmp_path / f"{checkpoint}.png"
        save_explanation_figure(
            path, explanation, HOSTILE, run_folder=explained, checkpoint=checkpoint
        )
        drawn[checkpoint] = path.read_bytes()
    assert drawn[name] == drawn[None] != drawn["joint-0"]


def test_a_prototype_is_drawn_with_what_lies_near(explained: Path, tmp_path: Path) -> None:
    path = save_prototype_figure(tmp_path / "p.png", explained, 4, nearest=3)
    with Image.open(path) as picture:
        assert min(picture.size) > 400
    with pytest.raises(SettingsError, match="prototypes 0 to 11"):
        save_prototype_figure(path, explained, 12)
    with pytest.raises(SettingsError, match="must end in"):
        save_prototype_figure(tmp_path / "p.jpeg", explained, 0)


def test_a_run_that_was_not_explained_is_named(
    trained: tuple[RunFolder, Splits], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(RunFolderError, match="protofast explain"):
        save_prototype_figure(tmp_path / "p.png", tmp_path / "run", 0)
