"""Which images the JPEG experiment compresses, and how."""

from pathlib import Path
from typing import Any

import pytest
import torch
from artefacts import ODD, SIZE, MeanColour, artefact_detector, network, noise, paper, run, subject
from PIL import Image

from protofast.audits.audit import Subject
from protofast.audits.jpeg import JpegExperiment
from protofast.data import CompressedImageSet, FileImageSet, ImageSet, compressed_classes
from protofast.data.image_set import FileEntry


def test_which_classes_are_compressed_and_how() -> None:
    images = noise(7, classes=7)
    model = network(MeanColour(), [[1.0, 0.0, 0.0]] * 7, list(range(7)))
    released = JpegExperiment(JpegExperiment.protocols["released"])  # type: ignore[arg-type]
    done = released.compression(subject(model, images))
    assert (done.classes, done.quality, done.codec, done.from_run) == (
        (1, 3, 5),
        20,
        "pillow",
        False,
    )
    for seed in (0, 1):
        done = paper().compression(subject(model, images, seed=seed))
        assert done.classes == compressed_classes(7, "half", seed)
        assert (done.quality, done.codec) == (20, "simplejpeg")
    jpeg = {"compressed": "half", "quality": 10, "codec": "simplejpeg", "seed": 3}
    for audit in (paper(), released):
        done = audit.compression(subject(model, images, seed=9, facts={"data": {"jpeg": jpeg}}))
        assert done.classes == compressed_classes(7, "half", 3)
        assert (done.quality, done.codec, done.from_run) == (10, "simplejpeg", True)
    off = {"data": {"jpeg": {**jpeg, "compressed": "none"}}}
    assert not paper().compression(subject(model, images, facts=off)).from_run
    assert list(JpegExperiment.protocols) == ["paper", "released"]


def test_settings_that_are_reported_are_those_that_were_used() -> None:
    images = noise(7, classes=7)
    model = network(MeanColour(), [[1.0, 0.0, 0.0]] * 7, list(range(7)))
    jpeg = {"compressed": "half", "quality": 10, "codec": "simplejpeg", "seed": 3}
    trained = subject(model, images, seed=9, facts={"data": {"jpeg": jpeg}})
    plain = subject(model, images, seed=9)

    def used(audit: JpegExperiment, on: Subject) -> tuple[Any, ...]:
        said, done = audit.settings_of(on), audit.compression(on)
        assert (said.quality, said.codec) == (done.quality, done.codec)
        assert said.classes is not None
        assert said.classes_seed is not None
        assert done.classes == compressed_classes(7, said.classes, said.classes_seed)
        return said.classes, said.classes_seed, said.quality, said.codec

    released = JpegExperiment(JpegExperiment.protocols["released"])  # type: ignore[arg-type]
    assert used(paper(), trained) == used(released, trained) == ("half", 3, 10, "simplejpeg")
    assert used(paper(), plain) == ("half", 9, 20, "simplejpeg")
    assert used(released, plain) == ("odd", 9, 20, "pillow")
    said = paper(classes="odd", quality=70, codec="pillow")
    assert used(said, trained) == ("odd", 3, 70, "pillow")
    assert used(said, plain) == ("odd", 9, 70, "pillow")
    assert not said.compression(trained).from_run
    assert used(paper(quality=70), trained) == ("half", 3, 70, "simplejpeg")
    assert used(paper(classes_seed=4), trained) == ("half", 4, 10, "simplejpeg")
    assert not paper(classes_seed=4).compression(trained).from_run


def test_a_quality_that_is_asked_for_is_used_whatever_the_run_had() -> None:
    rows, _ = run(paper(quality=100), subject(artefact_detector(), noise(8), facts=ODD))
    expected, _ = run(paper(), subject(artefact_detector(), noise(8), facts=ODD))
    for fine, coarse in zip(rows[1::2], expected[1::2], strict=True):
        assert fine["similarity_compressed"] < coarse["similarity_compressed"]


@pytest.mark.parametrize("cached", [False, True])
def test_images_that_are_compressed_already_are_not_compressed_twice(cached: bool) -> None:
    images: ImageSet = CompressedImageSet(noise(10), [1])
    if cached:
        images = images.cached()
    rows, _ = run(paper(), subject(artefact_detector(), images, facts=ODD))
    expected, _ = run(paper(), subject(artefact_detector(), noise(10), facts=ODD))
    assert rows == expected
    some, _ = run(paper(), subject(artefact_detector(), images.subset([3, 4]), facts=ODD))
    assert [row["similarity_change"] for row in some if row["compressed"]] == [
        expected[3]["similarity_change"]
    ]


def test_files_are_compressed_before_they_are_resized(tmp_path: Path) -> None:
    large = noise(4).pixels.repeat(1, 1, 2, 3)
    entries = []
    for n, image in enumerate(large):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{n}.png")
        entries.append(FileEntry(tmp_path / f"{n}.png", f"{n}.png", n % 2))
    files = FileImageSet(entries, classes=("a", "b"), size=(SIZE, SIZE))
    on = subject(artefact_detector(), files, facts=ODD)
    of_input = {"data": {"jpeg": {**ODD["data"]["jpeg"], "at": "input"}}}
    trained = subject(artefact_detector(), files, facts=of_input)  # unless its run did otherwise
    for asked, audited, at in (
        (paper(), on, "file"),
        (paper(at="input"), on, "input"),
        (paper(), trained, "input"),
    ):
        compressed = CompressedImageSet(files, [0, 1], at=at)  # type: ignore[arg-type]
        assert asked.settings_of(audited).at == at
        pair = asked.look(audited, asked.compression(audited), [0, 2])
        for place, position in enumerate((0, 2)):
            assert torch.equal(pair["clean"][place], files.image(position) / 255)
            assert torch.equal(pair["compressed"][place], compressed.image(position) / 255)
    kept = subject(artefact_detector(), files.cached(), facts=ODD)
    assert run(paper(), kept)[0] == run(paper(), on)[0]
