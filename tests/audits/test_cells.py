"""Cells of the grid and their pixels, against loops over pixels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protofast.audits.cells import (
    bounding_rectangle,
    cells_of_boxes,
    chosen_cells,
    pixels_of_cells,
)

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(SIZES, GRIDS)
def test_every_pixel_belongs_to_one_cell(size, grid):
    counts = torch.zeros(size, dtype=torch.int64)
    for row in range(grid[0]):
        for column in range(grid[1]):
            pixels = pixels_of_cells(chosen_cells([(row, column)], grid), size)
            counts += pixels
            rows, columns = pixels.any(dim=1).nonzero(), pixels.any(dim=0).nonzero()
            assert int(pixels.sum()) == len(rows) * len(columns)  # a rectangle
    assert torch.equal(counts, torch.ones_like(counts))


def test_the_papers_grid_has_cells_of_32_pixels():
    cells = chosen_cells([(2, 5), (3, 5)], (7, 7))
    expected = torch.zeros(224, 224, dtype=torch.bool)
    expected[64:128, 160:192] = True
    assert torch.equal(pixels_of_cells(cells, (224, 224)), expected)


@given(SIZES, GRIDS, st.data())
def test_a_box_reaches_into_the_cells_of_its_pixels(size, grid, data):
    y0 = data.draw(st.integers(0, size[0] - 1))
    x0 = data.draw(st.integers(0, size[1] - 1))
    y1 = data.draw(st.integers(y0 + 1, size[0]))
    x1 = data.draw(st.integers(x0 + 1, size[1]))
    found = cells_of_boxes(torch.tensor([[x0, y0, x1, y1]]), size, grid)[0]
    hit = torch.zeros(grid, dtype=torch.bool)
    for y in range(y0, y1):
        for x in range(x0, x1):
            hit[y * grid[0] // size[0], x * grid[1] // size[1]] = True
    assert torch.equal(found, bounding_rectangle(hit))
    if grid[0] <= size[0] and grid[1] <= size[1]:
        assert torch.equal(found, hit)


def test_the_border_rule_is_that_of_the_released_code():
    """Rows h0//32 ... min(h1//32 + 1, 7) - 1, where h1 is one past the last row of the box."""
    edges = [(0, 1), (0, 32), (31, 33), (32, 64), (40, 95), (40, 96), (190, 224), (223, 224)]
    for y0, y1 in edges:
        for x0, x1 in edges:
            found = cells_of_boxes(torch.tensor([x0, y0, x1, y1]), (224, 224), (7, 7), border=True)
            expected = torch.zeros(7, 7, dtype=torch.bool)
            expected[y0 // 32 : min(y1 // 32 + 1, 7), x0 // 32 : min(x1 // 32 + 1, 7)] = True
            assert torch.equal(found, expected), (y0, y1, x0, x1)
    plain = cells_of_boxes(torch.tensor([32, 32, 64, 64]), (224, 224), (7, 7))
    assert plain.nonzero().tolist() == [[1, 1]]


@given(GRIDS, st.integers(0, 2**30))
def test_bounding_rectangle(grid, seed):
    cells = torch.rand(5, *grid, generator=torch.Generator().manual_seed(seed)) < 0.15
    for one, found in zip(cells, bounding_rectangle(cells), strict=True):
        expected = torch.zeros(grid, dtype=torch.bool)
        places = one.nonzero()
        if len(places):
            (top, left), (bottom, right) = places.amin(dim=0), places.amax(dim=0)
            expected[top : bottom + 1, left : right + 1] = True
        assert torch.equal(found, expected)


def test_cells_that_are_not_there():
    for place in ((2, 0), (0, 3), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="2 rows and 3 columns"):
            chosen_cells([place], (2, 3))
