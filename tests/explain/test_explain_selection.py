"""Which images and prototypes are shown, and how large."""

import pytest
import torch
from explained_run import Trained

from protofast.explain.album import longest_side
from protofast.explain.gallery import Likeness, Source, likenesses
from protofast.explain.passes import Decisions
from protofast.explain.pictures import jpeg
from protofast.explain.samples import choose_right, choose_wrong


def test_sampling_takes_turns_and_shows_the_worst() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([0] * 30 + [1] * 3 + [2] * 3)
    logits = torch.randn(36, 3, generator=generator)
    logits[:20, 0] += 9  # twenty right ones of class 0
    found = Decisions(logits, labels)
    right = choose_right(found, 3, seed=0)
    assert len({int(labels[i]) for i in right}) == min(
        3, len(set(labels[found.predicted == labels].tolist()))
    )
    assert right == choose_right(found, 3, seed=0)
    wrong = choose_wrong(found, 100)
    assert sorted(wrong) == (found.predicted != labels).nonzero()[:, 0].tolist()
    behind = logits.amax(1) - logits.gather(1, labels[:, None])[:, 0]
    worst = [
        max((i for i in wrong if labels[i] == c), key=lambda i: float(behind[i])) for c in range(3)
    ]
    assert {*wrong[: len(worst)]} == {*worst}
    assert choose_wrong(Decisions(torch.eye(3), torch.arange(3)), 5) == []


def test_thousands_that_are_the_same_are_counted_and_not_listed() -> None:
    vectors = torch.zeros(600, 4)
    vectors[300:] = torch.rand(300, 4) + 1
    sources = [Source(j // 2, 5, None, None) if j >= 298 else None for j in range(600)]
    alike = likenesses(vectors, sources)
    assert [len(one.first) for one in alike] == [12] * 300 + [1] * 300
    assert alike[0].first == list(range(1, 13))
    assert alike[5].first == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]
    assert (alike[0].count, alike[0].duplicate, alike[0].collapsed) == (299, False, True)
    assert (alike[298].count, alike[298].duplicate, alike[298].collapsed) == (299, True, True)
    assert alike[301] == Likeness(True, False, [300], 1)


@pytest.mark.parametrize("pictures", [10, 1_200, 3_000, 8_000])
def test_many_pictures_become_small(trained: Trained, pictures: int) -> None:
    side = longest_side(pictures)
    assert 48 <= side <= 224
    images = trained[1].project
    some = [jpeg(images.image(index), longest=side) for index in range(0, 40, 8)]
    assert pictures * sum(map(len, some)) / len(some) < 10.5e6
    assert longest_side(100_000) == 48
