import subprocess
import sys
import zlib
from collections import Counter
from itertools import combinations

import pytest
import torch

from protofast.data import PARTS, BirdSet, Splits, check_leaks, open_birds
from protofast.data.birds.render import render
from protofast.data.birds.species import GENES, choose_species, name_species

VISIBILITY = {name: weight for name, _, weight in GENES}


@pytest.fixture(scope="module")
def birds() -> Splits:
    return open_birds(classes=10, train_per_class=12, test_per_class=8, size=56, cache=False)


@pytest.fixture(scope="module")
def bird_set(birds: Splits) -> BirdSet:
    assert isinstance(birds.train, BirdSet)
    return birds.train


def checksum(images: torch.Tensor) -> int:
    return zlib.crc32(images.contiguous().numpy().tobytes())


@pytest.mark.parametrize("classes", [2, 3, 8, 10, 37, 200])
@pytest.mark.parametrize("seed", [0, 1])
def test_species_differ_by_combinations_of_parts(classes: int, seed: int) -> None:
    species = choose_species(classes, seed)
    assert len(species) == classes

    def differences(a: dict[str, str], b: dict[str, str]) -> list[str]:
        return [gene for gene in a if a[gene] != b[gene]]

    for a, b in combinations(species, 2):
        assert sum(VISIBILITY[gene] for gene in differences(a, b)) >= 3.5
    # Fine-grained: nearly every species has a neighbour that differs in two parts only.
    with_neighbour = sum(
        any(len(differences(a, b)) == 2 for b in species if b is not a) for a in species
    )
    assert with_neighbour >= classes / 2
    if classes >= 8:
        for gene in species[0]:
            assert min(Counter(one[gene] for one in species).values()) >= 2
    names = name_species(species)
    assert len(set(names)) == classes


def test_seeds_are_worlds_of_their_own() -> None:
    assert choose_species(10, 0) == choose_species(10, 0)
    assert choose_species(10, 0) != choose_species(10, 1)
    with pytest.raises(ValueError, match="classes must be in 2"):
        choose_species(1, 0)


def test_the_data_set(birds: Splits) -> None:
    train, project, test = birds
    assert project is train
    assert (len(train), len(test)) == (120, 80)
    assert train.classes == test.classes
    assert torch.bincount(train.labels).tolist() == [12] * 10
    assert torch.bincount(test.labels).tolist() == [8] * 10
    assert len(set(train.names) | set(test.names)) == 200
    assert train[0].image.shape == (3, 56, 56)
    assert check_leaks(train, test) == []
    assert "seed 0" in train.description


def test_images_do_not_depend_on_threads_or_on_what_else_is_rendered(birds: Splits) -> None:
    again = open_birds(
        classes=10, train_per_class=3, test_per_class=2, size=56, cache=False, threads=3
    )
    for label in range(10):
        assert torch.equal(
            again.train.pixels[3 * label : 3 * label + 3],  # type: ignore[attr-defined]
            birds.train.pixels[12 * label : 12 * label + 3],  # type: ignore[attr-defined]
        )
        assert torch.equal(again.test[2 * label].image, birds.test[8 * label].image)
    other = open_birds(
        classes=10, train_per_class=1, test_per_class=1, size=56, seed=1, cache=False
    )
    assert not torch.equal(other.train[0].image, birds.train[0].image)


def test_another_process_renders_the_same(birds: Splits) -> None:
    code = (
        "import zlib; from protofast.data import open_birds; "
        "s = open_birds(classes=10, train_per_class=12, test_per_class=8, size=56, cache=False, "
        "threads=1); print(zlib.crc32(s.train.pixels.contiguous().numpy().tobytes()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == checksum(birds.train.pixels)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [32, (48, 96), (130, 70), 512])
def test_any_size(size: int | tuple[int, int]) -> None:
    small = open_birds(classes=2, train_per_class=1, test_per_class=1, size=size, cache=False)
    shape = (size, size) if isinstance(size, int) else size
    assert small.train.size == shape
    truth = small.train.truth(0)  # type: ignore[attr-defined]
    assert truth.mask.shape == shape
    assert (truth.mask > 0).float().mean() > 0.02


def test_part_places_lie_in_their_masks(bird_set: BirdSet) -> None:
    seen: Counter[str] = Counter()
    for index in range(0, len(bird_set), 5):
        parts, mask, _ = bird_set.truth(index)
        assert mask.dtype == torch.uint8
        for number, (x, y, visible) in enumerate(parts.tolist(), start=1):
            present = bool((mask == number).any())
            assert present == bool(visible)
            if present:
                assert mask[int(y), int(x)] == number
                seen[PARTS[number - 1]] += 1
    assert set(seen) == set(PARTS)


def test_a_crest_is_there_if_the_species_has_one(bird_set: BirdSet) -> None:
    crest = PARTS.index("crest")
    for index in range(len(bird_set)):
        has_crest = bird_set.species[int(bird_set.labels[index])]["crest"] != "none"
        if not has_crest:
            assert bird_set.parts[index, crest].tolist() == [0, 0, 0]
    assert bird_set.parts[:, crest, 2].any()


def test_boxes_are_tight(bird_set: BirdSet) -> None:
    assert bird_set.boxes is not None
    for index in range(0, len(bird_set), 7):
        truth = bird_set.truth(index)
        rows, columns = torch.nonzero(truth.mask, as_tuple=True)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert truth.box.tolist() == [float(value) for value in expected]
        assert torch.equal(bird_set.boxes[index], truth.box)


def test_the_mask_is_where_the_colour_is() -> None:
    """A crown of another colour changes the pixels of the crown (and crest), and hardly any
    other."""
    species = choose_species(10, 0)[0]
    red, blue = ({**species, "crown": colour} for colour in ("red", "blue"))
    crown = [PARTS.index(name) + 1 for name in ("crown", "crest")]
    for number in range(5):
        one = render(red, (0, 0, number), (120, 120))
        two = render(blue, (0, 0, number), (120, 120))
        assert (one.parts == two.parts).all()
        changed = abs(one.pixels.astype(int) - two.pixels).sum(2) > 60
        inside = torch.isin(torch.from_numpy(one.parts), torch.tensor(crown)).numpy()
        assert changed[inside].mean() > 0.7
        assert changed[~inside].mean() < 0.01


def test_subsets_keep_their_truth(bird_set: BirdSet) -> None:
    some = bird_set.subset(torch.tensor([50, 3]))
    assert some.names == [bird_set.names[50], bird_set.names[3]]
    assert torch.equal(some[0].image, bird_set[50].image)
    for ours, theirs in zip(some.truth(1), bird_set.truth(3), strict=True):
        assert torch.equal(ours, theirs)


def test_mean_colour_does_not_give_the_class_away(birds: Splits) -> None:
    """A classifier by the nearest mean colour stays far below what looking at parts gives."""
    train, test = (
        side.pixels.float().mean((2, 3))  # type: ignore[attr-defined]
        for side in (birds.train, birds.test)
    )
    centres = torch.stack([train[birds.train.labels == label].mean(0) for label in range(10)])
    guesses = torch.cdist(test, centres).argmin(1)
    assert (guesses == birds.test.labels).float().mean() < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size must be 16"),
        ({"size": (64, 5000)}, "size must be 16"),
        ({"classes": 1}, "classes must be in 2"),
        ({"classes": 501}, "classes must be in 2"),
        ({"train_per_class": 0}, "must be in 1 … 1000000, got 0 and 20"),
        ({"train_per_class": 1_000_001}, "must be in 1 … 1000000, got 1000001"),
    ],
)
def test_misuse_is_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_birds(cache=False, **options)


def test_progress_is_told() -> None:
    told = []
    open_birds(
        classes=2,
        train_per_class=2,
        test_per_class=1,
        size=32,
        cache=False,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(k, 6) for k in range(1, 7)]
