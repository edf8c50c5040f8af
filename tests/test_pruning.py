import heapq

import pytest
import torch
from features_as_images import batches_of, model_on_features

from protofast import ProtoPNet
from protofast.errors import DataError, SettingsError
from protofast.pruning import nearest_images, prune_prototypes


class _Farthest:
    """An entry of a heap whose root is the farthest image (find_nearest.py)."""

    def __init__(self, distance, image, label, location):
        self.row = (distance, image, label, location)

    def __lt__(self, other):
        return self.row[0] > other.row[0]


def original_nearest(features, labels, prototypes, k):
    """ProtoPNet's search with a heap for each prototype, literally, in float64."""
    heaps = [[] for _ in prototypes]
    for image, (z, label) in enumerate(zip(features.double(), labels.tolist(), strict=True)):
        for heap, p in zip(heaps, prototypes.double(), strict=True):
            distances = (z - p[:, None, None]).square().sum(0).flatten()
            location = int(distances.argmin())
            entry = _Farthest(float(distances[location]), image, label, location)
            if len(heap) < k:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
    return [sorted(entry.row for entry in heap) for heap in heaps]


@pytest.fixture
def case():
    torch.manual_seed(3)
    features, labels = torch.rand(40, 6, 3, 4), torch.arange(40) % 4
    features[torch.arange(40), labels] += 0.3  # a little of what sets a class apart
    prototypes = torch.rand(16, 6)
    prototypes[torch.arange(16), torch.arange(16) // 4] += 0.3
    model = model_on_features(4, 4, 6, prototypes=prototypes)
    return model, features, labels


def columns(expected):
    """Rows of (distance, image, label, location) for each prototype -> four lists [P][k]."""
    return [[[row[i] for row in rows] for rows in expected] for i in range(4)]


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_nearest_images_are_the_originals(case, batch_size):
    model, features, labels = case
    expected = original_nearest(features, labels, model.prototypes.detach(), 6)
    nearest = nearest_images(model, batches_of(features, labels, batch_size), k=6)
    distances, images, classes, locations = columns(expected)
    assert nearest.images.tolist() == images
    assert nearest.labels.tolist() == classes
    assert nearest.locations.tolist() == locations
    torch.testing.assert_close(
        nearest.distances, torch.tensor(distances, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_ties_go_to_the_earliest_images(batch_size):
    torch.manual_seed(4)
    features, labels = torch.randint(0, 3, (40, 3, 2, 2)) / 2, torch.arange(40) % 4
    prototypes = torch.randint(0, 5, (8, 3)) / 4
    model = model_on_features(4, 2, 3, prototypes=prototypes)
    expected = original_nearest(
        features, labels, prototypes, 40
    )  # all, sorted by (distance, image)
    order = torch.randperm(40)
    nearest = nearest_images(model, batches_of(features, labels, batch_size, order), k=5)
    assert nearest.images.tolist() == [[row[1] for row in rows[:5]] for rows in expected]
    assert nearest.locations.tolist() == [[row[3] for row in rows[:5]] for rows in expected]
    assert nearest.distances.tolist() == [[row[0] for row in rows[:5]] for rows in expected]


class OwnRule(ProtoPNet):
    """Finds by a rule of its own, so that no pair can be left out before it is asked."""

    asked = 0

    def nearest_patch(self, features, chosen=None):
        self.asked += 1
        return super().nearest_patch(features, chosen)


@pytest.mark.parametrize("metric", ["squared_l2", "l2", "dot"])
@pytest.mark.parametrize("batch_size", [3, 25])
@pytest.mark.parametrize("order", ["of classes", "shuffled"])
@pytest.mark.parametrize("own_class_only", [False, True])
def test_leaving_out_what_is_too_far_changes_nothing(metric, batch_size, order, own_class_only):
    generator = torch.Generator().manual_seed(6)
    labels = torch.arange(150) // 15
    means = torch.rand(10, 40, generator=generator)
    drawn = torch.rand(150, 40, 3, 3, generator=generator)
    features = (drawn + means[labels, :, None, None]) / 2
    prototypes = (torch.rand(60, 40, generator=generator) + means[torch.arange(60) // 6]) / 2
    prototypes[::2] = features[5 * torch.arange(30), :, 1, 2]  # projected
    features[140] = features[3]  # equal images, of which the earlier counts
    rows = torch.randperm(150, generator=generator) if order == "shuffled" else None
    model = model_on_features(10, 6, 40, prototypes=prototypes, metric=metric, similarity="linear")
    batches = batches_of(features, labels, batch_size, rows)
    found = nearest_images(model, batches, k=4, own_class_only=own_class_only)
    model.__class__ = OwnRule
    expected = nearest_images(model, batches, k=4, own_class_only=own_class_only)
    assert model.asked == len(batches)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_frozen_layer_that_is_out_of_date_is_still_an_error(case):
    model, features, labels = case
    model.eval().prototype_layer.freeze()
    expected = nearest_images(model, batches_of(features, labels, 7), k=3)
    model.prototype_layer.unfreeze()
    found = nearest_images(model, batches_of(features, labels, 7), k=3)
    assert torch.equal(found.distances, expected.distances)
    model.prototype_layer.freeze()
    model.prototypes.data[0] += 1
    with pytest.raises(RuntimeError, match="changed since they were packed"):
        nearest_images(model, batches_of(features, labels, 7), k=3)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, 1e30])
def test_images_that_are_not_finite_are_named_wherever_they_come(case, number):
    model, features, labels = case
    model.check_images(features)
    features[37, :, 1, 1] = number
    if number == 1e30:  # beyond the range of squares, in every patch
        features[37] = number
    with pytest.raises(DataError, match="image 37 of the set"):
        nearest_images(model, batches_of(features, labels, 8), k=2)


def test_own_class_only_and_more_than_there_are(case):
    model, features, labels = case
    done = []
    nearest = nearest_images(
        model, batches_of(features, labels, 16), k=12, own_class_only=True, progress=done.append
    )
    assert done == [16, 32, 40]
    assert nearest.images.shape == (16, 12)
    own = model.prototype_class.unsqueeze(1).expand(16, 10)
    assert torch.equal(nearest.labels[:, :10], own)
    assert torch.equal(labels[nearest.images[:, :10]], own)
    assert (nearest.distances[:, :9] <= nearest.distances[:, 1:10]).all()
    for missing in (nearest.images, nearest.labels, nearest.locations):
        assert (missing[:, 10:] == -1).all()
    assert nearest.distances[:, 10:].isnan().all()
    assert (nearest_images(model, [], k=3).images == -1).all()
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        nearest_images(model, [], k=0)


def test_prunes_what_the_original_prunes(case):
    model, features, labels = case
    old, weight, classes = (
        tensor.detach().clone()
        for tensor in (model.prototypes, model.last_layer.weight, model.prototype_class)
    )
    expected = original_nearest(features, labels, old, 6)
    counts = [
        sum(row[2] == label for row in rows)
        for rows, label in zip(expected, classes.tolist(), strict=True)
    ]
    keep = [j for j, count in enumerate(counts) if count >= 2]
    assert 0 < len(keep) < 16
    assert len(classes[keep].unique()) == 4
    pruning = prune_prototypes(model, batches_of(features, labels, 16), k=6, threshold=2)
    assert pruning.keep.tolist() == keep
    assert pruning.removed.tolist() == [j for j in range(16) if j not in keep]
    assert pruning.own_class_counts.tolist() == counts
    assert pruning.nearest.images.shape == (16, 6)
    assert pruning.empty_classes == ()
    assert torch.equal(model.prototypes, old[keep])
    assert torch.equal(model.last_layer.weight, weight[:, keep])
    assert torch.equal(model.prototype_class, classes[keep])
    assert model(features[:3]).activations.shape == (3, len(keep))


def test_a_class_that_loses_everything_is_named():
    # Class 1's only prototype lies among the images of class 0.
    features = torch.cat([torch.full((6, 2, 1, 1), 0.1), torch.full((6, 2, 1, 1), 0.9)])
    labels = torch.tensor([0] * 6 + [1] * 6)
    model = model_on_features(2, 1, 2, prototypes=torch.tensor([[0.1, 0.1], [0.2, 0.2]]))
    with pytest.warns(UserWarning, match="class 1 has lost all its prototypes") as record:
        pruning = prune_prototypes(model, batches_of(features, labels, 5))
    assert record[0].filename == __file__
    assert pruning.empty_classes == (1,)
    assert pruning.own_class_counts.tolist() == [6, 0]
    assert model.num_prototypes == 1


def test_pruning_everything_is_refused_and_changes_nothing(case):
    model, features, labels = case
    model.prototype_class = model.prototype_class % 3
    labels.fill_(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SettingsError, match="would remove all 16 prototypes"):
        prune_prototypes(model, batches_of(features, labels, 16))
    assert model.num_prototypes == 16
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_useless_options_and_images(case):
    model, features, labels = case
    with pytest.raises(ValueError, match=r"threshold must lie in 1...k = 6; got 7"):
        prune_prototypes(model, [], threshold=7)
    model.check_images(features)  # the first ones, whose range alone is looked at
    features[9] = torch.nan
    with pytest.raises(DataError, match="image 9 of the set"):
        prune_prototypes(model, batches_of(features, labels, 16))
    model.prototype_class = None
    with pytest.raises(ValueError, match="these have none"):
        prune_prototypes(model, [])
    with pytest.raises(ValueError, match="these have none"):
        nearest_images(model, [], k=2, own_class_only=True)
