"""Runs with compressed classes, and with compression as augmentation."""

from pathlib import Path

import pytest
import torch
from small_runs import Tiny, assert_same_end, different, distances_to_sources, train_in_pieces

from protofast.data import Batches, Splits, compressed_classes, round_trip
from protofast.errors import SettingsError
from protofast.training import build_data, load_settings, train

HALF = ("training.jpeg.probability=0.5", "training.augmentation.rotation=0")
SHORT = ("training.schedule.epochs=2", "training.schedule.last_layer_epochs=1")


def test_a_stopped_run_with_augmentation_goes_on_bit_for_bit(
    tiny: Tiny, birds: Splits, tmp_path: Path
) -> None:
    settings = tiny(*HALF, *SHORT)
    whole = train(settings, tmp_path / "whole", data=birds)
    result, starts = train_in_pieces(4, settings, tmp_path / "run", data=birds)
    assert starts > 2
    assert_same_end(whole.folder, result.folder)
    # Projection saw the images as they are: each prototype equals its patch of a clean one.
    assert distances_to_sources(whole.folder, birds) == [0] * 6
    without = train(tiny(*HALF[1:], *SHORT), tmp_path / "without", data=birds)
    assert different(whole.folder, without.folder)


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
