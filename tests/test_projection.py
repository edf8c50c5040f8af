import os
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from features_as_images import batches_of, model_on_features
from torch import distributed, multiprocessing, nn

from protofast.errors import DataError
from protofast.models import ProtoPNet, PrototypeModel, build_backbone
from protofast.projection import project_prototypes
from protofast.pruning import nearest_images


def small_model(classes, per_class, depth, input_size):
    return ProtoPNet(
        build_backbone("small"),
        num_classes=classes,
        prototypes_per_class=per_class,
        depth=depth,
        input_size=input_size,
    )


def original_push(features, labels, prototypes, prototype_class, batch_size):
    """ProtoPNet's push (push.py), literally, in float64: argmin in each batch, strict < between."""
    features = features.double().numpy()
    nearest = np.full(len(prototypes), np.inf)
    images, locations = np.full(len(prototypes), -1), np.full(len(prototypes), -1)
    vectors = prototypes.detach().double().numpy().copy()
    for start in range(0, len(features), batch_size):
        z = features[start : start + batch_size]
        own_label = labels[start : start + batch_size].numpy()
        for j, p in enumerate(prototypes.detach().double().numpy()):
            rows = np.flatnonzero(own_label == int(prototype_class[j]))
            if len(rows) == 0:
                continue
            squares = (
                (z[rows] ** 2).sum(1) - 2 * np.tensordot(z[rows], p, axes=(1, 0)) + (p**2).sum()
            )
            distances = np.maximum(squares, 0)  # [rows, H, W]
            row, h, w = np.unravel_index(np.argmin(distances), distances.shape)
            if distances[row, h, w] < nearest[j]:
                nearest[j] = distances[row, h, w]
                images[j], locations[j] = start + rows[row], h * z.shape[3] + w
                vectors[j] = z[rows[row], :, h, w]
    return nearest, images, locations, vectors


@pytest.fixture
def tied():
    """Coarse features: full of exact ties within and between images, and exact in float32 too."""
    torch.manual_seed(0)
    features = torch.randint(0, 5, (30, 4, 3, 4)) / 4
    labels = torch.randint(0, 3, (30,))
    prototypes = torch.randint(0, 9, (12, 4)) / 8
    return features, labels, prototypes


@pytest.mark.parametrize("batch_size", [1, 4, 7, 30])
def test_the_originals_rules_ties_included(tied, batch_size):
    features, labels, prototypes = tied
    model = model_on_features(3, 4, 4, prototypes=prototypes)
    nearest, images, locations, vectors = original_push(
        features, labels, prototypes, model.prototype_class, batch_size
    )
    projection = project_prototypes(model, batches_of(features, labels, batch_size))
    assert projection.images.tolist() == images.tolist()
    assert projection.locations.tolist() == locations.tolist()
    assert projection.distances.tolist() == nearest.tolist()
    assert model.prototypes.tolist() == vectors.tolist()
    moved = (torch.tensor(vectors) - prototypes).norm(dim=1)
    torch.testing.assert_close(projection.moved, moved)
    assert projection.empty_classes == ()


def test_a_model_that_only_classifies_is_projected_alike(tied):
    features, labels, prototypes = tied
    model, plain = (model_on_features(3, 4, 4, prototypes=prototypes) for _ in range(2))
    plain.nearest_patch = partial(PrototypeModel.nearest_patch, plain)
    batches = batches_of(features, labels, 7)
    near, near_plain = (nearest_images(m, batches, k=3) for m in (model, plain))
    projection, plainly = (project_prototypes(m, batches) for m in (model, plain))
    for got, expected in zip(near_plain, near, strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(plainly.images, projection.images)
    assert torch.equal(plainly.locations, projection.locations)
    assert torch.equal(plain.prototypes, model.prototypes)


def test_the_order_of_images_does_not_matter(tied):
    features, labels, prototypes = tied
    model = model_on_features(3, 4, 4, prototypes=prototypes)
    expected = project_prototypes(model, batches_of(features, labels, 30))
    for seed in range(3):
        order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
        other = model_on_features(3, 4, 4, prototypes=prototypes)
        result = project_prototypes(other, batches_of(features, labels, 4, order))
        assert torch.equal(result.images, expected.images)
        assert torch.equal(result.locations, expected.locations)
        assert torch.equal(other.prototypes, model.prototypes)


def test_a_real_network_projects_onto_its_own_features_and_stays_there():
    torch.manual_seed(1)
    model = ProtoPNet(
        build_backbone("small"),
        num_classes=4,
        prototypes_per_class=3,
        depth=32,
        input_size=(48, 64),
    )
    images, labels = torch.rand(18, 3, 48, 64), torch.arange(18) % 4
    model.eval()
    with torch.no_grad():
        features = torch.cat(
            [model.features(batch.images) for batch in batches_of(images, labels, 5)]
        )
    before = model.prototypes.detach().clone()
    nearest, source, locations, vectors = original_push(
        features, labels, before, model.prototype_class, 5
    )
    done = []
    projection = project_prototypes(model, batches_of(images, labels, 5), progress=done.append)
    assert done == [5, 10, 15, 18]
    assert projection.images.tolist() == source.tolist()
    assert projection.locations.tolist() == locations.tolist()
    np.testing.assert_allclose(projection.distances, nearest, rtol=1e-5)
    assert model.prototypes.tolist() == vectors.tolist()
    with torch.no_grad():
        output = model.classify(features)
    at_source = torch.tensor(source), torch.arange(12)
    assert (output.distances[at_source] == 0).all()
    assert torch.equal(output.locations[at_source], projection.locations)
    torch.testing.assert_close(output.activations[at_source], torch.full((12,), 1e4).log())

    again = project_prototypes(model, batches_of(images, labels, 5))
    assert torch.equal(again.images, projection.images)
    assert torch.equal(again.locations, projection.locations)
    assert (again.distances == 0).all()
    assert (again.moved == 0).all()
    assert model.prototypes.tolist() == vectors.tolist()


def test_features_of_half_precision_are_copied_exactly():
    torch.manual_seed(2)
    model = ProtoPNet(
        build_backbone("small"),
        num_classes=2,
        prototypes_per_class=2,
        depth=16,
        input_size=(32, 32),
    )
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6) % 2
    with torch.autocast("cpu", torch.bfloat16):
        projection = project_prototypes(model, batches_of(images, labels, 6))
        with torch.no_grad():
            output = model.eval()(images)
    assert model.prototypes.dtype == torch.float32
    assert (output.distances[projection.images, torch.arange(4)] == 0).all()


def test_modes_come_back_module_by_module():
    model = small_model(2, 1, 8, (32, 32))
    model.train()
    frozen = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in frozen[:3]:
        module.eval()
    modes = [module.training for module in model.modules()]
    statistics = frozen[5].running_mean.clone()
    project_prototypes(model, batches_of(torch.rand(4, 3, 32, 32), torch.arange(4) % 2, 2))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(frozen[5].running_mean, statistics)
    assert model.prototypes.requires_grad
    assert model.prototypes.grad is None

    def failing():
        yield from batches_of(torch.rand(2, 3, 32, 32), torch.arange(2), 1)
        raise OSError("the disk is gone")

    before = model.prototypes.detach().clone()
    with pytest.raises(OSError, match="disk"):
        project_prototypes(model, failing())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.prototypes, before)
    assert torch.is_grad_enabled()


def test_a_class_without_images_keeps_its_prototypes_and_warns(tied):
    features, labels, _ = tied
    model = model_on_features(5, 2, 4, prototypes=torch.rand(10, 4))
    before = model.prototypes.detach().clone()
    message = r"no image of class 3, 4: their 4 prototype\(s\) stay"
    with pytest.warns(UserWarning, match=message) as record:
        projection = project_prototypes(model, batches_of(features, labels, 8))
    assert record[0].filename == __file__
    assert projection.empty_classes == (3, 4)
    assert torch.equal(model.prototypes[6:], before[6:])
    assert projection.images[6:].tolist() == [-1] * 4
    assert projection.locations[6:].tolist() == [-1] * 4
    assert projection.distances[6:].isnan().all()
    assert (projection.moved[6:] == 0).all()
    assert (projection.images[:6] >= 0).all()
    with pytest.warns(UserWarning, match="class 0, 1, 2, 3, 4"):
        assert project_prototypes(model, []).images.tolist() == [-1] * 10


def test_prototypes_without_a_class_may_take_any_image(tied):
    features, labels, prototypes = tied
    model = model_on_features(3, 4, 4, prototypes=prototypes)
    model.prototype_class = None
    projection = project_prototypes(model, batches_of(features, labels, 8))
    nothing = torch.zeros_like(labels)
    nearest, images, *_ = original_push(features, nothing, prototypes, torch.zeros(12), 8)
    assert projection.images.tolist() == images.tolist()
    assert projection.distances.tolist() == nearest.tolist()
    with pytest.raises(DataError, match="no images to project the prototypes on"):
        project_prototypes(model, [])


def test_features_that_are_not_finite_name_the_image(tied):
    features, labels, prototypes = tied
    model = model_on_features(3, 4, 4, prototypes=prototypes)
    broken = features.clone()
    broken[17, 2, 1, 1] = torch.nan
    broken[21, 0, 0, 0] = torch.inf
    before = model.prototypes.detach().clone()
    with pytest.raises(DataError, match="image 17 of the set gives features or distances"):
        project_prototypes(model, batches_of(broken, labels, 8))
    assert torch.equal(model.prototypes, before)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("scan", [project_prototypes, partial(nearest_images, k=2)])
def test_one_number_that_is_not_finite_is_enough(tied, value, scan):
    features, labels, prototypes = tied
    features = features.clone()
    features[23, 3, 2, 3] = value
    model = model_on_features(3, 4, 4, prototypes=prototypes)
    with pytest.raises(DataError, match="image 23 of the set"):
        scan(model, batches_of(features, labels, 8))


def _on_one_rank(rank, folder, features, labels, prototypes):
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    try:
        # Uneven shares, dealt out alternately, the second rank's in reverse.
        mine = torch.arange(len(features))[rank::2]
        if rank == 1:
            mine = mine.flip(0)[:-1]
        model = model_on_features(4, 3, 4, prototypes=prototypes)
        share = batches_of(features, labels, 3 + rank, mine)
        near = nearest_images(model, share, k=20)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            projection = project_prototypes(model, share)
        broken = features.clone()
        broken[5] = torch.nan  # on rank 1 alone
        try:
            project_prototypes(model, batches_of(broken, labels, 4, mine))
            error = ""
        except DataError as raised:
            error = str(raised)
        torch.save(
            {
                "prototypes": model.prototypes.detach(),
                "images": projection.images,
                "locations": projection.locations,
                "distances": projection.distances,
                "near": tuple(near),
                "warned": len(caught),
                "error": error,
            },
            f"{folder}/rank{rank}.pt",
        )
    finally:
        distributed.destroy_process_group()


def test_two_ranks_give_what_one_gives(tied, tmp_path):
    features, labels, prototypes = tied
    multiprocessing.spawn(
        _on_one_rank, args=(str(tmp_path), features, labels, prototypes), nprocs=2
    )
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    model = model_on_features(4, 3, 4, prototypes=prototypes)
    seen = torch.cat([torch.arange(0, 30, 2), torch.arange(3, 30, 2)]).sort().values
    alone = batches_of(features, labels, 30, seen)
    near = nearest_images(model, alone, k=20)
    with pytest.warns(UserWarning, match="class 3"):
        projection = project_prototypes(model, alone)
    for rank in (first, second):
        assert torch.equal(rank["prototypes"], model.prototypes)
        assert torch.equal(rank["images"], projection.images)
        assert torch.equal(rank["locations"], projection.locations)
        torch.testing.assert_close(rank["distances"], projection.distances, equal_nan=True)
        for got, expected in zip(rank["near"], near, strict=True):
            assert torch.equal(got, expected)
        assert rank["warned"] == 1
        assert "image 5 of the set" in rank["error"]


@pytest.mark.cuda
def test_on_a_gpu(tied):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    features, labels, prototypes = tied
    here = model_on_features(3, 4, 4, prototypes=prototypes)
    there = model_on_features(3, 4, 4, prototypes=prototypes).cuda()
    batches = batches_of(features, labels, 7)
    for mine, theirs in zip(
        nearest_images(here, batches, k=5), nearest_images(there, batches, k=5), strict=True
    ):
        assert torch.equal(mine, theirs)
    mine, theirs = project_prototypes(here, batches), project_prototypes(there, batches)
    assert torch.equal(mine.images, theirs.images)
    assert torch.equal(mine.locations, theirs.locations)
    assert there.prototypes.is_cuda
    assert torch.equal(here.prototypes, there.prototypes.cpu())
