"""The JPEG experiment on networks that look for what a test says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor, nn

from protofast.audits.audit import Number, Row, Subject, skipped
from protofast.audits.jpeg import NOT_FINITE, REMARKS, JpegExperiment, JpegExperimentSettings
from protofast.data import (
    CompressedImageSet,
    FileImageSet,
    ImageSet,
    MemoryImageSet,
    compressed_classes,
    round_trip,
)
from protofast.data.image_set import FileEntry
from protofast.models import ProtoPNet, build_backbone

SIZE = 32
ODD = {"data": {"jpeg": {"compressed": "odd", "quality": 20, "codec": "simplejpeg", "seed": 0}}}


class Smoothness(nn.Module):
    """Two channels per cell of 8 x 8 pixels: how smooth it is, and 1."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(dim=1, keepdim=True)
        pool = nn.functional.avg_pool2d
        smooth = 3 - 200 * (pool(grey**2, 8) - pool(grey, 8) ** 2)
        return torch.cat((smooth, torch.ones_like(smooth)), dim=1)


class MeanColour(nn.Module):
    """The mean colour of each cell, which hardly changes with compression."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 8)


def network(backbone: nn.Module, prototypes: Sequence[Sequence[float]], classes: list[int]):
    """Similarity is the dot product of the backbone's channels and the prototypes."""
    model = ProtoPNet(
        backbone,
        num_classes=max(classes) + 1,
        prototype_class=classes,
        depth=len(prototypes[0]),
        backbone_depth=len(prototypes[0]),
        input_size=(SIZE, SIZE),
        metric="dot",
        similarity="linear",
        mean=[0.5] * 3,
        std=[1.0] * 3,
    )
    model.add_on = nn.Identity()
    with torch.no_grad():
        model.prototypes.copy_(torch.tensor(prototypes))
    return model.eval().requires_grad_(False)


def artefact_detector() -> ProtoPNet:
    """Names class 1 what is smooth in places, as compressed noise is, and class 0 all else."""
    return network(Smoothness(), [[0.0, 1.6], [1.0, 0.0]], [0, 1])


def noise(count: int, classes: int = 2, channels: int = 3) -> MemoryImageSet:
    """Grey noise, all classes alike; class k is that of every image n with n % classes = k."""
    generator = torch.Generator().manual_seed(0)
    grey = 128 + 30 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    pixels = grey.clamp(0, 255).to(torch.uint8).repeat(1, channels, 1, 1)
    source = ImageSet(
        classes=[f"class {k}" for k in range(classes)],
        labels=[n % classes for n in range(count)],
        names=[f"image-{n}" for n in range(count)],
        channels=channels,
        size=(SIZE, SIZE),
    )
    return MemoryImageSet(pixels, source=source)


def subject(model: ProtoPNet, images: ImageSet, **options: Any) -> Subject:
    unused = torch.zeros(len(images), dtype=torch.int64)
    return Subject(
        name="model",
        model=model,
        images=images,
        predictions=unused,
        correct_in_all=unused == 0,
        **options,
    )


def run(audit: JpegExperiment, on: Subject) -> tuple[list[Row], dict[str, Number]]:
    rows = [row for unit in audit.units(on) for row in audit.measure(on, unit)]
    return rows, {number.key: number for number in audit.summarise(on, rows)}


def paper(**options: Any) -> JpegExperiment:
    return JpegExperiment(JpegExperimentSettings(**options))


def read(path: Path) -> np.ndarray[Any, Any]:
    """A picture in grey."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L"), dtype=float)


def test_a_network_that_looks_for_artefacts_is_caught() -> None:
    on = subject(artefact_detector(), noise(20), facts=ODD)
    rows, numbers = run(paper(), on)
    values = {key: number.value for key, number in numbers.items()}
    assert values["accuracy_altered"] == 100
    assert values["accuracy_original"] == 50
    assert values["accuracy_all_compressed"] == 50
    assert values["similarity_falls"] == 100
    assert values["rank_correlation"] == pytest.approx(-1)
    assert values["top_k_overlap"] == 100  # there are two prototypes
    assert numbers["accuracy_altered"].n == 20
    assert numbers["similarity_change"].n == 10
    assert numbers["similarity_change"].better is None  # near zero is good
    assert numbers["rank_correlation"].better == "higher"
    assert -2 < values["similarity_change"] < -0.8  # type: ignore[operator]
    assert values["similarity_change_relative"] < -30  # type: ignore[operator]
    assert set(REMARKS).isdisjoint(values)
    assert [row["compressed"] for row in rows] == [False, True] * 10
    for row in rows[1::2]:
        assert (row["prototype"], row["prototype_class"], row["rank_clean"]) == (1, 1, 2)


def test_a_network_that_looks_at_colours_is_not() -> None:
    images = noise(20)
    images.pixels[::2, 0] //= 2
    images.pixels[1::2, 2] //= 2
    model = network(MeanColour(), [[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0], [1.0, 0.0, 0.0]], [0, 1, 1])
    _, numbers = run(paper(), subject(model, images, facts=ODD))
    for key in ("accuracy_altered", "accuracy_original", "accuracy_all_compressed"):
        assert numbers[key].value == 100
    assert abs(numbers["similarity_change_relative"].value) < 10  # type: ignore[arg-type]
    assert numbers["rank_correlation"].value > 0.99  # type: ignore[operator]


def test_numbers_are_what_their_names_say() -> None:
    torch.manual_seed(0)
    model = ProtoPNet(
        build_backbone("small", weights=None),
        num_classes=3,
        prototypes_per_class=4,
        depth=8,
        input_size=(SIZE, SIZE),
    )
    model.eval().requires_grad_(False)
    images = noise(9, classes=3)
    audit = paper(top=3, quality=30, codec="pillow")
    on = subject(model, images, seed=5)
    rows, numbers = run(audit, on)
    chosen = compressed_classes(3, "half", 5)
    assert {row["label"] for row in rows if row["compressed"]} == set(chosen)
    clean = model(images.pixels / 255)
    compressed = model(round_trip(images.pixels, quality=30, codec="pillow") / 255)
    for row in rows:
        n = row["image"]
        assert row["predicted_clean"] == clean.logits[n].argmax()
        assert row["predicted_compressed"] == compressed.logits[n].argmax()
        if not row["compressed"]:
            assert "similarity_change" not in row
            continue
        before, after = compressed.activations[n], clean.activations[n]
        top = int(before.argmax())
        assert row["prototype"] == top
        assert row["similarity_compressed"] == pytest.approx(float(before[top]), rel=1e-5)
        change = float(after[top] - before[top])
        assert row["similarity_change"] == pytest.approx(change, rel=1e-3, abs=1e-6)
        relative = 100 * change / float(before[top])
        assert row["similarity_change_relative"] == pytest.approx(relative, rel=1e-3, abs=1e-4)
        expected = stats.spearmanr(before.numpy(), after.numpy()).statistic
        assert row["rank_correlation"] == pytest.approx(expected)
        same = set(before.topk(3).indices.tolist()) & set(after.topk(3).indices.tolist())
        assert row["top_k_overlap"] == pytest.approx(100 * len(same) / 3)
        assert row["rank_clean"] == 1 + int((after > after[top]).sum())
    hit = [row for row in rows if row["compressed"]]
    for key in ("similarity_change", "rank_correlation", "top_k_overlap"):
        assert numbers[key].value == pytest.approx(np.mean([row[key] for row in hit]))
    right = [
        row["predicted_compressed" if row["compressed"] else "predicted_clean"] == row["label"]
        for row in rows
    ]
    assert numbers["accuracy_altered"].value == pytest.approx(100 * np.mean(right))


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


def test_neither_batch_nor_unit_changes_a_row() -> None:
    images = noise(70)
    whole = subject(artefact_detector(), images, facts=ODD, batch_size=70)
    units = paper().units(whole)
    assert [len(unit) for unit in units] == [16, 16, 16, 16, 6]
    rows = paper().measure(whole, range(70))
    assert [row["image"] for row in rows] == list(range(70))
    small = subject(artefact_detector(), images, facts=ODD, batch_size=7)
    again = [row for position in range(70) for row in paper().measure(small, [position])]
    for one, other in zip(rows, again, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            close = pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
            assert other[key] == close


def test_a_random_subset() -> None:
    def drawn(seed: int) -> list[int]:
        on = subject(artefact_detector(), noise(20), seed=seed)
        (unit,) = paper(images=8).units(on)
        return unit

    assert len(set(drawn(0))) == 8
    assert drawn(0) == sorted(drawn(0)) == drawn(0) != drawn(1)
    on = subject(artefact_detector(), noise(20))
    assert paper(images=50).units(on) == [list(range(16)), list(range(16, 20))]


def test_ties_flat_and_negative_similarities_are_counted() -> None:
    model = network(MeanColour(), [[1.0, 0.0, 0.0]] * 3, [0, 1, 1])
    images = noise(8)
    images.pixels //= 4  # darker than the mean, so similarities are below 0
    rows, numbers = run(paper(), subject(model, images, facts=ODD))
    for row in rows[1::2]:
        assert row["prototype"] == 0  # the first of equals
        assert row["rank_correlation"] is None
        assert row["similarity_change_relative"] is None
        assert row["top_k_overlap"] == 100
        assert row["rank_clean"] == 1
        assert set(row["remarks"].split()) >= {
            "tied_prototypes",
            "similarity_not_positive",
            "constant_similarities",
        }
    assert numbers["rank_correlation"].value is None
    assert numbers["similarity_change_relative"].value is None
    assert numbers["similarity_change"].n == 4
    for key in ("tied_prototypes", "similarity_not_positive", "constant_similarities"):
        assert numbers[key].value == 100


def test_images_named_wrongly_count_and_are_told() -> None:
    model = network(Smoothness(), [[0.0, 1.6], [1.0, 0.0]], [1, 0])  # the wrong way round
    _, numbers = run(paper(), subject(model, noise(8), facts=ODD))
    assert numbers["accuracy_altered"].value == 0
    assert numbers["wrong_compressed"].value == 100
    assert numbers["similarity_change"].n == 4


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    class Broken(MeanColour):
        def forward(self, images: Tensor) -> Tensor:
            found = super().forward(images)
            dark = images.amax(dim=(1, 2, 3)) < -0.4
            return torch.where(dark[:, None, None, None], torch.nan, found)

    images = noise(8)
    images.pixels[3] = 0
    model = network(Broken(), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0, 1])
    on = subject(model, images, facts=ODD)
    rows, numbers = run(paper(), on)
    assert skipped(rows) == {NOT_FINITE: 1}
    assert rows[3]["skipped"] == NOT_FINITE
    assert numbers["accuracy_altered"].n == 7
    assert numbers["similarity_change"].n == 3


def test_no_compressed_images_give_no_number_and_no_picture(tmp_path: Path) -> None:
    images = noise(8).subset([0, 2, 4])
    on = subject(artefact_detector(), images, facts=ODD)
    rows, numbers = run(paper(), on)
    assert numbers["accuracy_altered"].value == numbers["accuracy_original"].value
    assert numbers["similarity_change"].value is None
    assert paper().pictures(on, rows, tmp_path / "pictures") == []


def test_pictures_show_the_worst_first(tmp_path: Path) -> None:
    on = subject(artefact_detector(), noise(20), facts=ODD)
    rows, _ = run(paper(), on)
    found = paper().pictures(on, rows, tmp_path / "one")
    worst = sorted((row["similarity_change"], row["name"]) for row in rows if row["compressed"])
    pairs = [each for each in found if set(each.files) == {"compressed", "clean"}]
    assert [each.image for each in pairs] == [name for _, name in worst[:3]]
    assert found[0] is pairs[0]
    for each in found:
        sizes = {read(tmp_path / "one" / file).shape for file in each.files.values()}
        assert len(sizes) == 1
        assert max(sizes.pop()) <= 448
    # Where the similarity falls the map is darker, not stretched to its own range.
    shown = {version: read(tmp_path / "one" / file) for version, file in pairs[0].files.items()}
    assert shown["clean"].mean() < shown["compressed"].mean() - 10
    row = next(row for row in rows if row["name"] == worst[0][1])
    for number in (row["similarity_compressed"], row["similarity_clean"]):
        assert f"{number:.2f}" in pairs[0].caption
    assert "no. 2 of all prototypes" in pairs[0].caption
    assert "1 of 2 classes (as in training)" in found[-1].caption
    paper().pictures(on, rows, tmp_path / "two")
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == sorted(file for each in found for file in each.files.values())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_one_channel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ProtoPNet(
        build_backbone("small", num_channels=1, weights=None),
        num_classes=2,
        prototypes_per_class=3,
        depth=8,
        input_size=(SIZE, SIZE),
        num_channels=1,
    )
    on = subject(model.eval().requires_grad_(False), noise(6, channels=1), facts=ODD)
    rows, numbers = run(paper(), on)
    assert numbers["similarity_change"].n == 3
    assert len(paper().pictures(on, rows, tmp_path)) == 7
