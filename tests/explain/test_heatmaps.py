import numpy as np
import pytest
import torch

from protofast.heatmaps import high_activation_boxes, upsample


def _cubic(distance: np.ndarray) -> np.ndarray:
    """OpenCV's INTER_CUBIC weight (a = -0.75)."""
    a, d = -0.75, np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _resize(row: np.ndarray, size: int) -> np.ndarray:
    """Up-samples the last axis as OpenCV does: pixel centres at halves, edges repeated."""
    length = row.shape[-1]
    places = (np.arange(size) + 0.5) * length / size - 0.5
    result = np.zeros((*row.shape[:-1], size))
    for offset in range(-1, 3):
        tap = np.floor(places).astype(int) + offset
        result += row[..., tap.clip(0, length - 1)] * _cubic(places - tap)
    return result


def _box(heatmap: np.ndarray, percentile: float) -> list[int]:
    """The rule of the original's script, by its own words."""
    rows, columns = np.nonzero(heatmap >= np.percentile(heatmap, percentile))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(
    ("grid", "size"), [((7, 7), (112, 112)), ((3, 5), (48, 90)), ((1, 4), (9, 31))]
)
def test_up_sampling_is_opencvs_bicubic(grid: tuple[int, int], size: tuple[int, int]) -> None:
    maps = torch.rand(2, 3, *grid, dtype=torch.float64)
    expected = _resize(_resize(maps.numpy(), size[1]).swapaxes(2, 3), size[0]).swapaxes(2, 3)
    np.testing.assert_allclose(upsample(maps, size).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("percentile", [0.0, 50.0, 95.0, 100.0])
@pytest.mark.parametrize("seed", range(6))
def test_box_is_around_all_pixels_at_or_above_the_percentile(seed: int, percentile: float) -> None:
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 12, size=2))
    maps = generator.normal(size=(5, *shape))
    if seed % 2:  # many equal values
        maps = maps.round()
    found = high_activation_boxes(torch.from_numpy(maps), percentile=percentile)
    assert found.tolist() == [_box(one, percentile) for one in maps]


def test_two_separate_peaks_share_one_box() -> None:
    heatmap = torch.zeros(40, 60)
    heatmap[3:6, 4:16] = 1
    heatmap[30:34, 50:59] = 1
    assert high_activation_boxes(heatmap, percentile=98).tolist() == [4, 3, 59, 34]


@pytest.mark.parametrize("value", [0.1, -3.7, 9.2103])
@pytest.mark.parametrize("grid", [(1, 1), (7, 7), (2, 9)])
def test_a_flat_map_gives_the_whole_image(value: float, grid: tuple[int, int]) -> None:
    heatmap = upsample(torch.full((1, *grid), value), (50, 33))
    assert heatmap.unique().numel() == 1
    assert high_activation_boxes(heatmap).tolist() == [[0, 0, 33, 50]]


def test_a_map_with_nan_gives_the_whole_image() -> None:
    heatmap = torch.rand(8, 9)
    heatmap[2, 2] = torch.nan
    assert high_activation_boxes(heatmap).tolist() == [0, 0, 9, 8]


def test_empty_batches_and_wrong_arguments() -> None:
    assert upsample(torch.empty(0, 3, 4, 4), (8, 8)).shape == (0, 3, 8, 8)
    assert high_activation_boxes(torch.empty(0, 8, 8)).shape == (0, 4)
    with pytest.raises(ValueError, match="H, W > 0"):
        upsample(torch.empty(1, 0, 4), (8, 8))
    for shape in ((2, 0, 8), (8, 0), (8,)):
        with pytest.raises(ValueError, match="S, T > 0"):
            high_activation_boxes(torch.empty(shape))
    with pytest.raises(ValueError, match="percentile must be in"):
        high_activation_boxes(torch.rand(4, 4), percentile=101)


def test_boxes_do_not_depend_on_the_batch() -> None:
    maps = torch.rand(300, 7, 7)
    whole = high_activation_boxes(upsample(maps, (224, 224)))
    single = torch.stack([high_activation_boxes(upsample(one, (224, 224))) for one in maps[::60]])
    assert torch.equal(whole[::60], single)
