"""All that changes while a run goes on, and how it goes into a checkpoint and out again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from protofast.models import ProtoPNet
from protofast.training.engine import precision_state, restore_precision
from protofast.training.optimizers import (
    LearningStage,
    learnable,
    optimizer_tensors,
    restore_optimizer,
)
from protofast.training.random_state import capture_random_states, restore_random_states
from protofast.training.run_folder import load_weights, model_tensors

_HEAD = "head/"
TERMS = ("loss", "cross_entropy", "cluster", "separation", "l1", "alignment")


class EpochSums:
    """Sums over this rank's images of an epoch so far, on the model's device.

    Attributes:
        values: [8] float64: number of images, right answers, then each of ``TERMS`` times images.
        wins: [P] float64, see :func:`protofast.training.health.own_class_winners`.
        seconds: Spent in the epoch's training steps, interruptions left out.
    """

    def __init__(self, num_prototypes: int, device: torch.device) -> None:
        self.values = torch.zeros(2 + len(TERMS), dtype=torch.float64, device=device)
        self.wins = torch.zeros(num_prototypes, dtype=torch.float64, device=device)
        self.seconds = 0.0

    def add(self, right: Tensor, terms: list[Tensor], wins: Tensor, images: int) -> None:
        """Adds a batch: number of right answers, mean of each term, wins [P]; waits for no GPU."""
        parts = torch.stack([term.detach().to(torch.float64) for term in terms]) * images
        self.values[0] += images
        self.values[1] += right
        self.values[2:] += parts
        self.wins += wins

    def over_ranks(self, fabric: Fabric) -> tuple[Tensor, Tensor]:
        """The sums over all ranks."""
        if fabric.world_size == 1:
            return self.values.clone(), self.wins.clone()
        both = fabric.all_reduce(torch.cat([self.values, self.wins]), reduce_op="sum")
        assert isinstance(both, Tensor)
        return both[: len(self.values)], both[len(self.values) :]

    def means(self) -> dict[str, float]:
        """Accuracy and mean of each term so far, on this rank."""
        return means(self.values)


def means(values: Tensor) -> dict[str, float]:
    """From ``EpochSums.values`` to accuracy and the mean of each term."""
    images, right, *sums = values.tolist()
    count = max(images, 1.0)
    return {"accuracy": right / count} | {
        term: total / count for term, total in zip(TERMS, sums, strict=True)
    }


@dataclass
class State:
    """Model, optimisers, and the place: ``batch`` batches of plan step ``step`` are done.

    ``batches`` is how many that step had where the checkpoint was written.
    ``head`` is the linear layer of ``warm_head = "linear"``. ``prototypes`` are the rows of
    ``prototypes.json`` while the prototypes are patches of training images, else empty.
    """

    model: ProtoPNet
    head: nn.Linear | None
    optimizers: dict[LearningStage, torch.optim.Adam]
    sums: EpochSums
    step: int = 0
    batch: int = 0
    batches: int | None = None
    best: dict[str, Any] | None = None
    prototypes: list[dict[str, Any]] = field(default_factory=list)

    def capture(self, fabric: Fabric) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts for a checkpoint. All ranks must call it."""
        values, wins = self.sums.over_ranks(fabric)
        tensors = model_tensors(self.model) | {"sums.values": values, "sums.wins": wins}
        for stage, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(learnable(self.model, self.head), stage, optimizer)
        if self.head is not None:
            tensors |= {_HEAD + name: value for name, value in self.head.state_dict().items()}
        tensors |= capture_random_states(fabric)
        facts = {
            "model": self.model.config,
            "place": {"step": self.step, "batch": self.batch, "seconds": self.sums.seconds},
            "best": self.best,
            "prototypes": self.prototypes,
            "precision": precision_state(fabric),
        }
        return tensors, facts

    def restore(
        self, fabric: Fabric, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]
    ) -> list[str]:
        """The inverse of :meth:`capture`.

        Returns:
            What could not be restored, in words.
        """
        lost = []
        load_weights(self.model, tensors, name)
        for stage, optimizer in self.optimizers.items():
            restore_optimizer(learnable(self.model, self.head), stage, optimizer, tensors)
        if self.head is not None:
            weights = {key: value for key, value in tensors.items() if key.startswith(_HEAD)}
            if weights:
                self.head.load_state_dict(
                    {key.removeprefix(_HEAD): value for key, value in weights.items()}
                )
            else:
                lost.append("the warm stage's linear layer, which it did not have")
        place = facts["place"]
        self.step, self.batch, self.batches = place["step"], place["batch"], place["batches"]
        self.sums.seconds = place["seconds"]
        if fabric.global_rank == 0:  # the sums of all ranks; the others start from nothing
            values = tensors["sums.values"]  # of a checkpoint from before alignment: one less
            self.sums.values[: len(values)].copy_(values)
            self.sums.wins.copy_(tensors["sums.wins"])
        self.best, self.prototypes = facts["best"], facts["prototypes"]
        restore_precision(fabric, facts["precision"])
        states = {key: value for key, value in tensors.items() if key.startswith("random.")}
        if not restore_random_states(fabric, states):
            lost.append("the random states, which were saved by another number of ranks")
        return lost
