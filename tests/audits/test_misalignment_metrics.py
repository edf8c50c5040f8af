"""The metrics of the spatial-misalignment benchmark against their formulas, image by image."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from protofast.audits.misalignment_metrics import (
    activation_change,
    location_change,
    outside,
    protected_boxes,
    rank_change,
)

# ----- the formulas, literally: one image at a time, in numpy -----


def _bilinear(small: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixel centres on cell centres' lines, beyond the outermost centres their value."""
    large = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * small.shape[0] / height - 0.5, 0), small.shape[0] - 1)
            u = min(max((x + 0.5) * small.shape[1] / width - 0.5, 0), small.shape[1] - 1)
            top, left = int(v), int(u)
            below, right = min(top + 1, small.shape[0] - 1), min(left + 1, small.shape[1] - 1)
            upper = small[top, left] * (left + 1 - u) + small[top, right] * (u - left)
            lower = small[below, left] * (left + 1 - u) + small[below, right] * (u - left)
            large[y, x] = upper * (top + 1 - v) + lower * (v - top)
    return large


def literal_location_change(before: np.ndarray, after: np.ndarray, size, quantile=0.9) -> float:
    first, second = (
        large > np.quantile(large, quantile)
        for large in (_bilinear(before, *size), _bilinear(after, *size))
    )
    if not (first | second).any():
        return 0.0
    return 100 * (1 - (first & second).sum() / (first | second).sum())


def literal_rank_change(before: np.ndarray, after: np.ndarray, j: int, own: set[int]) -> int:
    others = [i for i in range(len(before)) if i not in own]
    passed = sum(1 for i in others if after[i] > after[j])
    return passed - sum(1 for i in others if before[i] > before[j])


def gaussian(row: float, column: float, width: float = 1.5) -> Tensor:
    cells = torch.arange(7, dtype=torch.float64)
    squares = (cells[:, None] - row) ** 2 + (cells[None] - column) ** 2
    return torch.exp(-squares / (2 * width**2))


# ----- location -----


@pytest.mark.parametrize("shape", [(3, 3), (4, 5), (1, 6)])
def test_location_change_is_its_formula(shape):
    generator = torch.Generator().manual_seed(1)
    before = torch.rand(6, *shape, generator=generator, dtype=torch.float64)
    after = before + 0.4 * torch.rand(6, *shape, generator=generator, dtype=torch.float64)
    size = (24, 30)
    found = location_change(before, after, size)
    assert found.dtype == torch.float64
    for n in range(6):
        expected = literal_location_change(before[n].numpy(), after[n].numpy(), size)
        assert float(found[n]) == pytest.approx(expected, abs=1e-9)
    other = location_change(before, after, size, quantile=0.5)
    expected = literal_location_change(before[0].numpy(), after[0].numpy(), size, 0.5)
    assert float(other[0]) == pytest.approx(expected, abs=1e-9)
    assert not torch.equal(other, found)


def test_location_change_of_a_peak_that_moves_by_one_cell():
    peak = gaussian(3, 3)
    noise = 0.01 * torch.randn(7, 7, generator=torch.Generator().manual_seed(0)).double()
    maps = torch.stack((gaussian(3, 4), peak + noise, peak, gaussian(0, 0)))
    moved, noisy, still, away = location_change(peak.expand(4, 7, 7), maps, (224, 224)).tolist()
    assert moved == pytest.approx(66.5, abs=0.05)
    assert 0.5 < noisy < 3
    assert still == 0.0
    assert away == 100.0


def test_location_change_of_flat_and_of_broken_maps():
    peak, flat = gaussian(3, 3), torch.full((7, 7), 0.3, dtype=torch.float64)
    broken = torch.full((7, 7), torch.nan, dtype=torch.float64)
    before = torch.stack((flat, flat, peak, peak))
    after = torch.stack((flat, peak, flat, broken))
    found = location_change(before, after, (32, 32))
    assert found.tolist() == [0.0, 100.0, 100.0, 100.0]  # 0 where neither marks anything


def test_location_change_of_an_image_does_not_depend_on_its_batch():
    maps = torch.rand(2, 65, 7, 7, generator=torch.Generator().manual_seed(4))
    together = location_change(maps[0], maps[1], (64, 48))
    alone = [location_change(maps[0, n : n + 1], maps[1, n : n + 1], (64, 48)) for n in range(65)]
    assert torch.equal(together, torch.cat(alone))
    assert location_change(maps[0, :0], maps[1, :0], (64, 48)).shape == (0,)


def test_location_change_names_the_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[2, 7, 7\] and \[3, 7, 7\]"):
        location_change(torch.zeros(2, 7, 7), torch.zeros(3, 7, 7), (8, 8))


# ----- activation and rank -----


def test_activation_change_is_a_share_and_is_not_clipped():
    before = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.0, -1.0, torch.nan])
    after = torch.tensor([2.0, 0.5, 3.0, -1.0, 1.0, -2.0, 1.0])
    found = activation_change(before, after)
    assert found[:4].tolist() == [0.0, 75.0, -50.0, 150.0]
    assert found[4:].isnan().all()


def test_rank_change_is_its_formula():
    generator = torch.Generator().manual_seed(2)
    # Few different values, so that there are ties, which are not strictly above.
    before, after = torch.randint(0, 6, (2, 40, 15), generator=generator).float()
    prototype = torch.randint(0, 15, (40,), generator=generator)
    own = torch.rand(40, 15, generator=generator) < 0.3
    own[0] = True  # no rival at all
    own[1] = False  # no class
    found = rank_change(before, after, prototype, own)
    expected = [
        literal_rank_change(
            before[n].numpy(),
            after[n].numpy(),
            int(prototype[n]),
            set(own[n].nonzero()[:, 0].tolist()),
        )
        for n in range(40)
    ]
    assert found.tolist() == expected
    assert found[0] == 0
    assert len(set(expected)) > 5


def test_rank_change_starts_from_0_for_the_strongest_of_all():
    before = torch.tensor([[5.0, 4.0, 3.0, 2.0]])
    after = torch.tensor([[1.0, 4.0, 1.0, 2.0]])
    own = torch.tensor([[False, False, False, True]])
    assert rank_change(before, after, torch.tensor([0]), own).tolist() == [1]


def test_rank_change_names_the_shapes_that_do_not_fit():
    values, own = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\[2, 3\], \[2, 4\]"):
        rank_change(values, torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), own)
    with pytest.raises(ValueError, match="N = 2"):
        rank_change(values, values, torch.zeros(3, dtype=torch.int64), own)


# ----- the protected region -----


def test_the_margin_ends_at_the_image_and_released_one_pixel_before():
    corner, centre = torch.zeros(2, 7, 7)
    corner[6, 6] = centre[3, 3] = 1
    maps = torch.stack((corner, centre))
    bare = protected_boxes(maps, (224, 224), margin=0)
    assert bare[0, 2:].tolist() == [224, 224]
    paper = protected_boxes(maps, (224, 224))
    assert torch.equal(paper[1], bare[1] + torch.tensor([-10, -10, 10, 10]))
    assert paper[0].tolist() == [bare[0, 0] - 10, bare[0, 1] - 10, 224, 224]
    released = protected_boxes(maps, (224, 224), whole=False)
    assert released[0].tolist() == [bare[0, 0] - 10, bare[0, 1] - 10, 223, 223]
    assert torch.equal(released[1], paper[1])


def test_the_region_of_a_flat_map_is_the_image():
    flat = torch.full((1, 2, 3), 0.7)
    assert protected_boxes(flat, (20, 30)).tolist() == [[0, 0, 30, 20]]
    assert protected_boxes(flat, (20, 30), whole=False).tolist() == [[0, 0, 29, 19]]
    assert not outside(protected_boxes(flat, (20, 30))[:, None], (20, 30)).any()
    free = outside(protected_boxes(flat, (20, 30), whole=False)[:, None], (20, 30))
    assert int(free.sum()) == 20 + 30 - 1


def test_outside_is_what_no_rectangle_that_counts_holds():
    boxes = torch.tensor([[[1, 0, 3, 2], [2, 1, 5, 3]], [[0, 0, 5, 4], [4, 3, 5, 4]]])
    free = outside(boxes, (4, 5))
    assert free.shape == (2, 1, 4, 5)
    assert free.dtype == torch.bool
    for y in range(4):
        for x in range(5):
            inside = any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes[0].tolist())
            assert bool(free[0, 0, y, x]) is not inside
    assert not free[1].any()
    some = outside(boxes, (4, 5), torch.tensor([[True, False], [False, True]]))
    assert int(some[0].sum()) == 20 - 4
    assert int(some[1].sum()) == 20 - 1


def test_the_constants_are_those_of_the_released_code():
    """224 pixels, 7 x 7 cells: the box of one peak, as long as cells are 32 pixels."""
    box = protected_boxes(gaussian(3, 3)[None], (224, 224), margin=0)[0].tolist()
    side = math.sqrt(0.05 * 224 * 224 * 4 / math.pi)  # of the square around a disc of 5 %
    assert box[2] - box[0] == pytest.approx(side, abs=3)
