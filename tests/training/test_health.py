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


def test_messages_are_one_line_however_many() -> None:
    groups = [[2 * k, 2 * k + 1] for k in range(500)]
    warning = health.warn_of_groups("duplicates", "are the same", groups, 1000)
    assert warning.message.startswith("500 of 1000 prototypes are the same: 0=1, 2=3")
    assert len(warning.message) < 120
    assert len(warning.prototypes) == 1000
    warning = health.warn_of_prototypes("idle", "never won", list(range(40)), 100)
    assert warning.message == "40 of 100 prototypes never won: 0, 1, 2, 3, 4, 5, 6, 7, ..."
