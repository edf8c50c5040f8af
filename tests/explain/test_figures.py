import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from PIL import Image

from protofast.data import Splits, load_image
from protofast.errors import RunFolderError, SettingsError
from protofast.explain import explain_image, save_explanation_figure, save_prototype_figure
from protofast.models import ProtoPNet, build_backbone
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


@pytest.mark.parametrize(
    ("key", "value"),
    [("nearest", {}), ("class", 99), ("source", {"image": "train-0"}), ("nearest", None)],
)
def test_a_damaged_summary_is_named(copy: RunFolder, tmp_path: Path, key: str, value: Any) -> None:
    run = copy.path
    path = run / "explanations" / "summary.json"
    summary = json.loads(path.read_text())
    summary["prototypes"][2][key] = value
    path.write_text(json.dumps(summary))
    with pytest.raises(RunFolderError, match=r"summary\.json: not what .* protofast explain"):
        save_prototype_figure(tmp_path / "p.png", run, 2)
    (run / "explanations" / "prototypes" / "1-heat.png").write_bytes(b"no picture")
    with pytest.raises(RunFolderError, match=r"1-heat\.png: cannot be read"):
        save_prototype_figure(tmp_path / "p.png", run, 1)


def test_similarities_that_are_all_0_can_be_drawn(tmp_path: Path) -> None:
    model = ProtoPNet(
        build_backbone("small"), num_classes=2, prototypes_per_class=1, depth=4, similarity="linear"
    ).eval()
    image = torch.rand(3, 48, 48)
    with torch.no_grad():
        model.prototypes[:] = model.features(image[None])[0, :, 1, 1]
    explanation = explain_image(model, image)
    assert explanation.classes[0].shown[0].contribution == 0
    assert save_explanation_figure(tmp_path / "p.png", explanation, ["a", "b"]).is_file()


def test_a_run_that_was_not_explained_is_named(
    trained: tuple[RunFolder, Splits], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(RunFolderError, match="protofast explain"):
        save_prototype_figure(tmp_path / "p.png", tmp_path / "run", 0)
