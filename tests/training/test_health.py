"""Signs of prototypes that do no work."""

import torch

from protofast.training import health


def test_duplicates_are_prototypes_from_the_same_place() -> None:
    images = torch.tensor([3, 3, 3, 5, -1, -1, 5])
    locations = torch.tensor([1, 2, 1, 1, -1, -1, 1])
    assert health.duplicates(images, locations) == [[0, 2], [3, 6]]
    nothing = torch.tensor([-1, -1])
    assert health.duplicates(nothing, nothing) == []


def test_collapsed_prototypes_are_nearly_equal_vectors() -> None:
    torch.manual_seed(0)
    prototypes = torch.rand(1500, 8)
    prototypes[1400] = prototypes[3] + 1e-5
    prototypes[1401] = prototypes[3]
    prototypes[9] = prototypes[8]
    assert health.collapsed(prototypes) == [[3, 1400, 1401], [8, 9]]
    assert health.collapsed(prototypes[:3]) == []


def test_winners_are_counted_within_the_class() -> None:
    prototype_class = torch.tensor([0, 0, 1, 1])
    distances = torch.tensor([[3.0, 2.0, 0.0, 9.0], [5.0, 4.0, 3.0, 3.0], [1.0, 1.0, 0.0, 0.0]])
    wins = health.own_class_winners(distances, torch.tensor([0, 1, 0]), prototype_class)
    assert wins.tolist() == [1, 1, 1, 0]
    # A class without prototypes (after pruning) has no winner.
    assert health.own_class_winners(distances, torch.tensor([2, 2, 2]), prototype_class).sum() == 0


def test_constant_channels() -> None:
    torch.manual_seed(0)
    features = torch.rand(3, 4, 2, 2)
    features[:, 1] = 0.25
    assert health.constant_channels(features) == [1]
    assert health.constant_channels(features[:1, :, :1, :1]) == [0, 1, 2, 3], "a single value"


def test_messages_are_one_line_however_many() -> None:
    groups = [[2 * k, 2 * k + 1] for k in range(500)]
    (warning,) = health.duplicate_prototypes(groups, 1000)
    assert warning.message.startswith("500 of 1000 prototypes show the same place")
    assert ": 0=1, 2=3, " in warning.message
    assert len(warning.message) < 150
    assert len(warning.prototypes) == 1000
    wins = torch.ones(100)
    wins[:40] = 0
    (warning,) = health.never_winning(wins)
    assert warning.message.startswith("40 of 100 prototypes were never the nearest of their class")
    assert warning.message.endswith(": 0, 1, 2, 3, 4, 5, 6, 7, ...")
    assert warning.row()["prototypes"] == list(range(40))


def test_health_is_silent() -> None:
    torch.manual_seed(0)
    assert health.never_winning(torch.ones(3)) == []
    assert health.collapsed_prototypes(torch.rand(5, 4)) == []
    assert health.duplicate_prototypes([], 5) == []
    features = torch.rand(3, 4, 2, 2)
    features[:, :2] = 0.5
    assert health.dead_features(features) == []
    features[:, 2] = 0
    assert "3 of 4 channels" in health.dead_features(features)[0].message
