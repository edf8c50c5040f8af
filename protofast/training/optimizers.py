"""The parts of a network, which of them learn in a stage, and an Adam for each stage."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from protofast.models import ProtoPNet
from protofast.training.rates import LearningRates, OptimizerSettings

LearningStage = Literal["warm", "joint", "last_layer"]
LEARNING_STAGES: tuple[LearningStage, ...] = ("warm", "joint", "last_layer")


def parts(model: ProtoPNet) -> dict[str, nn.Module]:
    """The parts that have a learning rate each, by its name in the settings."""
    return {
        "backbone": model.backbone,
        "add_on": model.add_on,
        "prototypes": model.prototype_layer,
        "last_layer": model.last_layer,
    }


def let_learn(model: ProtoPNet, rates: LearningRates) -> None:
    """Freezes the parts whose rate is 0 and drops gradients that an earlier stage left."""
    model.zero_grad(set_to_none=True)
    for name, part in parts(model).items():
        part.requires_grad_(getattr(rates, name) > 0)


def learnable(model: ProtoPNet, head: nn.Linear | None) -> dict[str, nn.Parameter]:
    """All parameters by the names that their moments have in a checkpoint."""
    found = dict(model.named_parameters())
    if head is not None:
        found |= {f"head.{name}": parameter for name, parameter in head.named_parameters()}
    return found


def build_optimizers(
    model: ProtoPNet, settings: OptimizerSettings, *, head: nn.Linear | None = None
) -> dict[LearningStage, torch.optim.Adam]:
    """One Adam per learning stage (PP/main.py); each is kept over all cycles of the run.

    Args:
        model: The network.
        settings: Learning rates.
        head: Learns in the warm stage, at the backbone's rate.
    """
    optimizers = {}
    for stage in LEARNING_STAGES:
        rates: LearningRates = getattr(settings, stage)
        groups = [
            {
                "params": list(part.parameters()),
                "base_rate": getattr(rates, name),
                "lr": getattr(rates, name),
                "weight_decay": getattr(settings.weight_decay, name),
            }
            for name, part in parts(model).items()
            if getattr(rates, name) > 0
        ]
        if stage == "warm" and head is not None:
            rate = rates.backbone
            group = {"params": list(head.parameters()), "base_rate": rate, "lr": rate}
            groups.append({**group, "weight_decay": settings.weight_decay.backbone})
        optimizers[stage] = torch.optim.Adam(groups)
    return optimizers


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to ``factor`` times its base."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor


def optimizer_tensors(
    parameters: dict[str, nn.Parameter], stage: str, optimizer: torch.optim.Adam
) -> dict[str, Tensor]:
    """The moments and step counts under their names in a checkpoint."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in parameters.items()}
    return {
        f"optimizer/{stage}/{slot}/{names[parameter]}": value
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def restore_optimizer(
    parameters: dict[str, nn.Parameter],
    stage: str,
    optimizer: torch.optim.Adam,
    tensors: dict[str, Tensor],
) -> None:
    """The inverse of :func:`optimizer_tensors`; parameters that never stepped have no state."""
    optimizer.state.clear()
    prefix = f"optimizer/{stage}/"
    for key, value in tensors.items():
        if key.startswith(prefix):
            slot, name = key.removeprefix(prefix).split("/", 1)
            if name not in parameters:  # of a linear head that the settings no longer have
                continue
            parameter = parameters[name]
            # Adam keeps its step count on the CPU.
            device = "cpu" if slot == "step" else parameter.device
            optimizer.state[parameter][slot] = value.to(device, copy=True)
