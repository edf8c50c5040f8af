"""`prune_prototypes`: the same prototypes as a literal loop with Python's heaps in float64."""

import heapq

import numpy as np
import pytest
import torch
from literal import Item, to_prune
from stand_ins import PPNet, TESNet, on_features, reciprocal
from test_push import CLASSES, batches_of, in_numpy, quiet

import protofast
from protofast import interop
from protofast.errors import SettingsError
from protofast.interop.heaps import Heaps


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("values", ["random", "tied"])
@pytest.mark.parametrize(("k", "threshold"), [(1, 1), (5, 2), (6, 3)])
@pytest.mark.parametrize("activation", ["log", "linear", reciprocal])
def test_prunes_what_the_literal_loop_prunes(
    activation, k, threshold, values, accelerated, tmp_path
) -> None:
    shape = (24, 6, 1, 2) if k == 5 else (24, 6, 1, 1)
    model = on_features(PPNet, shape, CLASSES, activation)
    batches = batches_of(60, (6, 3, 4), 13, values)
    if values == "tied":
        model.prototype_vectors.data = (model.prototype_vectors.data * 2).round() / 2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    identity = model.prototype_class_identity.numpy()
    expected = to_prune(
        in_numpy(batches), before["prototype_vectors"].numpy(), identity, k, threshold
    )
    assert 0 < len(expected) < 24
    if accelerated:
        protofast.accelerate(model)
    info = interop.prune_prototypes(
        batches, model, k, threshold, None, tmp_path, 10, quiet, copy_prototype_imgs=False
    )
    assert info.tolist() == [[j, int(identity[j].argmax())] for j in expected]
    folder = tmp_path / f"pruned_prototypes_epoch10_k{k}_pt{threshold}"
    assert np.array_equal(np.load(folder / "prune_info.npy"), info)
    kept = [j for j in range(24) if j not in expected]
    assert model.num_prototypes == len(kept)
    assert torch.equal(model.prototype_vectors, before["prototype_vectors"][kept])
    assert torch.equal(model.last_layer.weight, before["last_layer.weight"][:, kept])


@pytest.mark.parametrize("k", [1, 2, 3, 6, 11])
def test_heaps_move_as_pythons_do(k) -> None:
    """Few different distances: what stays depends on every move of the heap."""
    generator = np.random.default_rng(0)
    distances = generator.integers(0, 4, (90, 30)).astype(float)
    heaps = Heaps(30, k)
    for some in np.split(np.arange(90), [1, 7, 40]):
        heaps.update(distances[some], some.tolist())
    for j in range(30):
        expected = []
        for label, distance in enumerate(distances[:, j]):
            if len(expected) < k:
                heapq.heappush(expected, Item(label, distance))
            else:
                heapq.heappushpop(expected, Item(label, distance))
        assert heaps.labels[j].tolist() == [item.label for item in expected]


def test_fewer_images_than_k(tmp_path) -> None:
    model = on_features(PPNet, (8, 6, 1, 1), CLASSES)
    batches = [(torch.rand(4, 6, 2, 2), torch.tensor([0, 0, 1, 1]))]
    info = interop.prune_prototypes(
        batches, model, 6, 1, None, tmp_path, 1, quiet, copy_prototype_imgs=False
    )
    assert info[:, 1].tolist() == [2, 2, 3, 3]


def test_nothing_to_prune(tmp_path) -> None:
    model = on_features(PPNet, (8, 6, 1, 1), CLASSES)
    batches = [(torch.rand(4, 6, 2, 2), torch.arange(4))]
    info = interop.prune_prototypes(
        batches, model, 4, 1, None, tmp_path, 1, quiet, copy_prototype_imgs=False
    )
    assert info.shape == (0, 2)
    assert model.num_prototypes == 8


def test_pushed_files_are_copied_under_their_new_numbers(tmp_path) -> None:
    pytest.importorskip("PIL")
    model = PPNet(num_classes=3)
    batches = [(torch.rand(30, 3, 32, 32), torch.randint(0, 3, (30,)))]
    interop.push_prototypes(
        batches,
        model,
        root_dir_for_saving_prototypes=tmp_path / "img",
        epoch_number=10,
        prototype_img_filename_prefix="prototype-img",
        prototype_self_act_filename_prefix="prototype-self-act",
        proto_bound_boxes_filename_prefix="bb",
        log=quiet,
    )
    info = interop.prune_prototypes(batches, model, 6, 3, None, tmp_path, 10, quiet)
    assert 0 < len(info) < 12
    kept = [j for j in range(12) if j not in info[:, 0]]
    source = tmp_path / "img" / "epoch-10"
    target = tmp_path / "pruned_prototypes_epoch10_k6_pt3" / "img" / "epoch-10"
    for name in ("bb10.npy", "bb-receptive_field10.npy"):
        assert np.array_equal(np.load(target / name), np.load(source / name)[kept])
    for new, old in enumerate(kept):
        for name in ("prototype-img{}.png", "prototype-self-act{}.npy"):
            assert (target / name.format(new)).read_bytes() == (
                source / name.format(old)
            ).read_bytes()
    assert len(list(target.iterdir())) == 4 * len(kept) + 2


def test_refusals_leave_the_model_as_it_was(tmp_path) -> None:
    model = on_features(PPNet, (8, 6, 1, 1), CLASSES)
    batches = [(torch.rand(4, 6, 2, 2), torch.arange(4))]
    with pytest.raises(SettingsError, match="all 8 prototypes"):
        interop.prune_prototypes(batches, model, 2, 3, None, tmp_path, 1, quiet)
    with pytest.raises(FileNotFoundError):
        interop.prune_prototypes(batches, model, 1, 1, None, tmp_path, 1, quiet)
    with pytest.raises(ValueError, match="k must"):
        interop.prune_prototypes(batches, model, 0, 1, None, tmp_path, 1, quiet)
    assert model.num_prototypes == 8
    tesnet = on_features(TESNet, (8, 6, 1, 1), CLASSES)
    with pytest.raises(TypeError, match="prune_prototypes"):
        interop.prune_prototypes(batches, tesnet, 1, 1, None, tmp_path, 1, quiet)
