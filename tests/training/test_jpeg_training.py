"""Runs with compressed classes, and with compression as augmentation."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from protofast.data import Batches, Splits, compressed_classes, round_trip
from protofast.errors import SettingsError
from protofast.training import Settings, build_data, load_settings, train
from protofast.training.progress import Silence

Tiny = Callable[..., Settings]
HALF = ("training.jpeg.probability=0.5", "training.augmentation.rotation=0")
SHORT = ("training.schedule.epochs=2", "training.schedule.last_layer_epochs=1")


class _StopAfter(Silence):
    """Sets an event after so many calls from inside the loop, wherever that is."""

    def __init__(self, event: threading.Event, calls: int) -> None:
        self.event, self.calls = event, calls

    def advance(self, *args: object, **kwargs: object) -> None:
        self.calls -= 1
        if self.calls == 0:
            self.event.set()


def test_a_stopped_run_with_augmentation_goes_on_bit_for_bit(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    settings = tiny(*HALF, *SHORT)
    whole = train(settings, tmp_path / "whole", data=birds)
    starts, result = 0, None
    while result is None or not result.finished:
        stop = threading.Event()
        result = train(
            settings,
            tmp_path / "run",
            resume=starts > 0,
            data=birds,
            stop=stop,
            progress=_StopAfter(stop, 4),
        )
        starts += 1
        assert starts < 30
    assert starts > 2
    expected, found = (run.folder.read("latest")[1] for run in (whole, result))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    # Projection saw the images as they are: each prototype equals its patch of a clean one.
    model = whole.folder.load_model("latest").model
    images = next(iter(Batches(birds.project, len(birds.project)))).images
    with torch.no_grad():
        distances = model(images).distances
    for row in json.loads((whole.folder.path / "prototypes" / "prototypes.json").read_text()):
        assert distances[row["image_index"], row["prototype"]] == 0
    without = train(tiny(*HALF[1:], *SHORT), tmp_path / "without", data=birds)
    other = without.folder.read("latest")[1]
    assert any(not torch.equal(expected[name], other[name]) for name in expected)


@pytest.mark.parametrize("in_memory", ["true", "false"])
@pytest.mark.parametrize("which", ["half", "odd"])
def test_every_set_of_a_run_has_the_same_classes_compressed(
    tiny: Tiny, birds: Splits, which: str, in_memory: str
) -> None:
    wanted = (f"data.jpeg.compressed={which}", "data.jpeg.quality=10", "data.jpeg.seed=4")
    data = build_data(tiny(*wanted, f"data.in_memory={in_memory}").data, threads=1)
    assert data.project is data.train
    classes = compressed_classes(3, which, 4)  # type: ignore[arg-type]
    assert len(classes) == 1
    for images, before in zip(data, birds, strict=True):
        read = next(iter(Batches(images, len(images)))).images * 255
        clean = torch.stack([sample.image for sample in before])
        compressed = torch.isin(images.labels, torch.tensor(classes))
        expected = torch.where(
            compressed[:, None, None, None], round_trip(clean, quality=10), clean
        )
        assert torch.equal(read, expected.float())
        assert not torch.equal(read, clean.float())
        assert torch.equal(torch.stack([sample.image for sample in images.clean]), clean)
        assert "1 of 3 classes compressed to JPEG (quality 10, simplejpeg)" in images.description


@pytest.mark.parametrize("at", ["file", "input"])
def test_files_are_compressed_before_they_are_resized_or_after(tmp_path: Path, at: str) -> None:
    from PIL import Image

    from protofast.data import decode_image, resize_image

    generator = torch.Generator().manual_seed(0)
    for label in ("a", "b"):
        for number in range(4):
            file = tmp_path / label / f"{number}.png"
            file.parent.mkdir(exist_ok=True)
            coarse = torch.randint(0, 256, (6, 7, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(coarse.numpy()).resize((90, 70)).save(file)
    settings = load_settings(
        "paper",
        [
            "data.kind=folders",
            "data.crop=",
            f"data.root={tmp_path}",
            "data.size=32",
            "data.test_fraction=0.25",
            "data.jpeg.compressed=odd",
            "data.jpeg.codec=pillow",
            f"data.jpeg.at={at}",
        ],
    )
    data = build_data(settings.data, threads=2)
    for sample in data.train:
        file = data.train.file(sample.index)
        assert file is not None
        image = decode_image(file)
        if at == "file" and sample.label == 1:
            image = round_trip(image[None], codec="pillow")[0]
        image = resize_image(image, (32, 32))
        if at == "input" and sample.label == 1:
            image = round_trip(image[None], codec="pillow")[0]
        assert torch.equal(sample.image, image)


def test_settings_are_checked(tiny: Tiny) -> None:
    assert tiny().training.jpeg.build() is None
    jpeg = tiny("training.jpeg.probability=0.25", "training.jpeg.quality=7").training.jpeg.build()
    assert jpeg is not None
    assert (jpeg.probability, jpeg.quality, jpeg.codec) == (0.25, 7, "simplejpeg")
    for override, message in (
        ("data.jpeg.compressed=even", r"data\.jpeg\.compressed.*'none', 'half', 'odd'"),
        ("data.jpeg.quality=0", r"data\.jpeg\.quality"),
        ("training.jpeg.probability=1.5", r"training\.jpeg\.probability"),
        ("training.jpeg.codec=webp", r"training\.jpeg\.codec.*'simplejpeg', 'pillow'"),
        ("training.jpeg.qualty=20", r"did you mean.*quality"),
    ):
        with pytest.raises(SettingsError, match=message):
            tiny(override)
