"""Signs that prototypes do not do their work, looked at while a run goes on.

*Duplicate*: two prototypes show the same place of the same image after a projection. *Collapsed*:
two prototypes are nearly the same vector. *Never winning*: in a whole epoch a prototype was not
once the nearest of its class to an image of that class, so the cluster loss never moved it.
*Constant channel*: a channel of the features is the same everywhere in every image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from protofast.models import PrototypeModel
from protofast.sameness import nearly_same
from protofast.scan import evaluating

_CONSTANT = 1e-6  # standard deviation of a channel whose values lie in [0, 1]
_SHOWN = 8  # how many examples a message names


@dataclass(frozen=True)
class HealthWarning:
    """Something to tell the user, once a stage.

    Attributes:
        what: A word to search for.
        message: One line.
        prototypes: The prototypes meant, where it is about prototypes.
    """

    what: str
    message: str
    prototypes: list[int] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """For ``metrics.jsonl``."""
        return {"what": self.what, "message": self.message, "prototypes": self.prototypes}


def groups_of_equal(keys: Tensor) -> list[list[int]]:
    """Positions with equal rows of ``keys`` [P, n], as groups of two or more."""
    _, group = torch.unique(keys, dim=0, return_inverse=True)
    members: dict[int, list[int]] = {}
    for position, number in enumerate(group.tolist()):
        members.setdefault(number, []).append(position)
    return sorted(group for group in members.values() if len(group) > 1)


def duplicates(images: Tensor, locations: Tensor) -> list[list[int]]:
    """Groups of prototypes that were projected to the same patch; both tensors [P]."""
    found = (images >= 0).nonzero()[:, 0]
    groups = groups_of_equal(torch.stack([images[found], locations[found]], dim=1))
    return [[int(found[position]) for position in group] for group in groups]


def collapsed(prototypes: Tensor) -> list[list[int]]:
    """Groups of prototypes [P, D] that are nearly the same vector."""
    group_of = list(range(len(prototypes)))
    for start, near in nearly_same(prototypes):
        rows, columns = near.nonzero(as_tuple=True)
        for row, column in zip((rows + start).tolist(), columns.tolist(), strict=True):
            if column < row:
                group_of[row] = min(group_of[row], group_of[column])
    members: dict[int, list[int]] = {}
    for position, first in enumerate(group_of):
        members.setdefault(first, []).append(position)
    return [group for group in members.values() if len(group) > 1]


def own_class_winners(distances: Tensor, labels: Tensor, prototype_class: Tensor) -> Tensor:
    """How many images [P] each prototype is the nearest own-class prototype of.

    Args:
        distances: [N, P].
        labels: [N] int64.
        prototype_class: [P] int64.
    """
    own = prototype_class == labels[:, None]  # [N, P]
    masked = torch.where(own, distances, torch.inf)
    nearest = masked.argmin(dim=1, keepdim=True)  # [N, 1]
    wins = torch.zeros_like(masked, dtype=torch.float64).scatter_(1, nearest, 1.0)
    return (wins * own).sum(0)


def constant_channels(features: Tensor) -> list[int]:
    """Channels of ``features`` [N, D, H, W] that do not vary at all."""
    spread = features.detach().float().transpose(0, 1).flatten(1).std(dim=1, correction=0)  # [D]
    constant: list[int] = (spread < _CONSTANT).nonzero()[:, 0].tolist()
    return constant


def never_winning(wins: Tensor) -> list[HealthWarning]:
    """Warns of prototypes that won no image; ``wins`` [P]."""
    found: list[int] = (wins == 0).nonzero()[:, 0].tolist()
    if not found:
        return []
    shown = ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
    message = "prototypes were never the nearest of their class in this epoch"
    text = f"{len(found)} of {len(wins)} {message}: {shown}"
    return [HealthWarning("never_winning", text, found)]


def collapsed_prototypes(prototypes: Tensor) -> list[HealthWarning]:
    """Warns of nearly equal prototypes [P, D]."""
    kind = "are nearly the same vector as another"
    return _of_groups("collapsed", kind, collapsed(prototypes), len(prototypes))


def duplicate_prototypes(groups: list[list[int]], total: int) -> list[HealthWarning]:
    """Warns of what :func:`duplicates` found among ``total`` prototypes."""
    kind = "show the same place of the same image as another"
    return _of_groups("duplicates", kind, groups, total)


def dead_features(features: Tensor) -> list[HealthWarning]:
    """Warns if more than half the channels of ``features`` [N, D, H, W] are constant."""
    constant, channels = len(constant_channels(features)), features.shape[1]
    if 2 * constant <= channels:
        return []
    message = f"{constant} of {channels} channels of the features are the same everywhere"
    return [HealthWarning("constant_channels", f"{message}; the learning rates may be too high")]


def after_stage(model: PrototypeModel, wins: Tensor, images: Tensor | None) -> list[HealthWarning]:
    """What to warn of at the end of a stage.

    Args:
        model: The network.
        wins: [P], see :func:`own_class_winners`, of the last epoch.
        images: [N, channels, S, T] to look at; None after a stage that changed neither features nor
            prototypes.
    """
    found = never_winning(wins)
    if images is not None:
        with evaluating(model):
            features = model.features(images)
        found += collapsed_prototypes(model.prototypes)
        found += dead_features(features)
    return found


def _of_groups(what: str, kind: str, groups: list[list[int]], total: int) -> list[HealthWarning]:
    if not groups:
        return []
    surplus = sum(len(group) - 1 for group in groups)
    shown = ", ".join("=".join(map(str, group[:_SHOWN])) for group in groups[:_SHOWN])
    rest = ", ..." if len(groups) > _SHOWN else ""
    text = f"{surplus} of {total} prototypes {kind}: {shown}{rest}"
    members = sorted(position for group in groups for position in group)
    return [HealthWarning(what, text, members)]
