"""The JPEG experiment on networks that look for what a test says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from artefacts import (
    ODD,
    SIZE,
    MeanColour,
    Smoothness,
    artefact_detector,
    network,
    noise,
    paper,
    run,
    subject,
)
from PIL import Image
from scipy import stats
from torch import Tensor

from protofast.audits.audit import skipped
from protofast.audits.jpeg import NOT_FINITE, REMARKS
from protofast.data import compressed_classes, round_trip
from protofast.models import ProtoPNet, build_backbone


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
