"""`load_checkpoint`: weights of PPNet and TESNet from the files that their users have."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protofast.errors import CheckpointError
from protofast.interop.contract import unwrapped
from protofast.interop.files import read_file
from protofast.interop.unpickling import StandIn, stand_in_name
from protofast.models import ProtoPNet, build_backbone

_INSIDE = ("model_state_dict", "state_dict", "model", "net")
_PLAIN = (str, int, float, bool, type(None))
_DEEPEST, _MOST_MODULES = 100, 100_000
_RESIZED = ("prototype_vectors", "ones", "last_layer.weight")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    path: where it came from.
    state_dict: the tensors under the original's keys, on the CPU, without `module.`.
    class_name: `module.Class` of a whole pickled module; None for a bare state dict.
    attributes: of a whole module, those that are numbers, strings, tuples or lists of them
        (`img_size`, `prototype_shape`, `epsilon`, `proto_layer_rf_info`, ...); a function
        (`prototype_activation_function`) is there by name, as `module.function`.
    prototype_class: int64 [P], the class of each prototype. A bare state dict does not say; then it
        is the class to which the last layer gives each its largest weight.
    class_is_known: whether the file says those classes.
    """

    path: Path
    state_dict: dict[str, Tensor]
    class_name: str | None
    attributes: dict[str, Any]
    prototype_class: Tensor
    class_is_known: bool = True

    @property
    def num_prototypes(self) -> int:
        """P."""
        return self.state_dict["prototype_vectors"].shape[0]

    @property
    def num_classes(self) -> int:
        """C."""
        return self.state_dict["last_layer.weight"].shape[0]

    def fill(self, model: nn.Module) -> None:
        """Load everything into a network of the original's layout, in place.

        A network with another number of prototypes (the file is of a pruned one) is cut to size
        first: `prototype_vectors` and `ones` become new parameters, as in the original's
        `prune_prototypes`; make optimisers afterwards. `prototype_class_identity` is set where the
        file says it or the number of prototypes changes, and otherwise stays the network's own.

        Args:
            model: a PPNet or TESNet, accelerated or not, bare or in a wrapper.

        Raises:
            CheckpointError: names or shapes do not fit, or the classes of a pruned network's
                prototypes cannot be told; the network is left as it was.
        """
        network: Any = unwrapped(model)
        own = network.state_dict()
        own_count = own["prototype_vectors"].shape[0] if "prototype_vectors" in own else None
        resized = _RESIZED if own_count != self.num_prototypes else ()
        self._check(own, resized)
        has_classes = isinstance(getattr(network, "prototype_class_identity", None), Tensor)
        sets_classes = has_classes and (bool(resized) or self.class_is_known)
        if sets_classes:
            self._check_classes()
        if resized:
            self._cut(network)
        network.load_state_dict(self.state_dict, strict=False)
        if sets_classes:
            identity = nn.functional.one_hot(self.prototype_class, self.num_classes)
            network.prototype_class_identity = identity.to(network.prototype_class_identity)

    def protopnet(self, backbone: str | nn.Module, **options: Any) -> ProtoPNet:
        """A `ProtoPNet` with these weights, which takes images in [0, 1].

        Args:
            backbone: a name that `build_backbone` knows, or the original's own `features` module.
            options: as for `ProtoPNet`, in place of what the file says or the original takes:
                `similarity`, `eps`, `input_size`, `mean`, `std`, ....

        Raises:
            CheckpointError: the file is of another kind of network, does not fit the backbone, or
                does not let the classes of its prototypes be told.
        """
        prototypes = self.state_dict["prototype_vectors"]
        if "TESNet" in (self.class_name or "") or prototypes.shape[2:] != (1, 1):
            raise CheckpointError(
                f"{self.path} holds {self.class_name or 'a network'} with prototypes "
                f"{list(prototypes.shape)}; ProtoPNet compares prototypes [P, D, 1, 1] by squared "
                "L2 distance: fill the original's own class instead"
            )
        if "prototype_class" not in options:
            self._check_classes()
        model = ProtoPNet(
            build_backbone(backbone) if isinstance(backbone, str) else backbone,
            **{**self._arguments(), **options},
        )
        own = model.state_dict()
        state = dict(_renamed(self.state_dict))
        state |= {name: own[name] for name in ("prototype_class", "mean", "std")}
        _raise_if_different(str(self.path), state, own)
        model.load_state_dict(state, strict=False)
        return model.eval()

    def _arguments(self) -> dict[str, Any]:
        """Of `ProtoPNet`, as the file has them."""
        state, attributes = self.state_dict, self.attributes
        convolutions = [
            value
            for key, value in state.items()
            if key.startswith("add_on_layers.") and value.dim() == 4
        ]
        arguments: dict[str, Any] = {
            "num_classes": self.num_classes,
            "prototype_class": self.prototype_class.tolist(),
            "depth": state["prototype_vectors"].shape[1],
            "add_on": "regular" if len(convolutions) == 2 else "bottleneck",
            "backbone_depth": convolutions[0].shape[1] if convolutions else None,
            "eps": attributes.get("epsilon", 1e-4),
            "similarity": attributes.get("prototype_activation_function", "log"),
        }
        if isinstance(attributes.get("img_size"), int):
            arguments["input_size"] = (attributes["img_size"],) * 2
        return arguments

    def _check(self, own: Mapping[str, Tensor], resized: tuple[str, ...]) -> None:
        state = {key: value for key, value in self.state_dict.items() if key not in resized}
        fits = {key: value for key, value in own.items() if key not in resized}
        _raise_if_different(str(self.path), state, fits)
        for key in set(resized) & set(own) & set(self.state_dict):
            shape, expected = list(self.state_dict[key].shape), list(own[key].shape)
            axis = 1 if key == "last_layer.weight" else 0
            shape[axis] = expected[axis]
            if shape != expected:
                raise CheckpointError(
                    f"{self.path} does not fit the network: {key} is "
                    f"{list(self.state_dict[key].shape)} instead of {expected}"
                )

    def _check_classes(self) -> None:
        """Refuse to guess the class of a prototype that has its largest weight for several."""
        weight = self.state_dict["last_layer.weight"]
        if self.class_is_known or len(weight) < 2:
            return
        first, second = weight.topk(2, dim=0).values
        unclear = (~(first > second)).nonzero().flatten().tolist()  # of NaN too
        if unclear:
            raise CheckpointError(
                f"{self.path} is a bare state dict, which does not say the classes of prototypes, "
                f"and prototype {unclear[0]}{' and others' if unclear[1:] else ''} has no single "
                "largest weight in the last layer: save the whole module instead"
            )

    @torch.no_grad()
    def _cut(self, network: Any) -> None:
        """Give the network this file's number of prototypes."""
        old, weight = network.prototype_vectors, network.last_layer.weight
        count = self.num_prototypes
        shape = (count, *old.shape[1:])
        network.prototype_vectors = nn.Parameter(old.new_empty(shape), old.requires_grad)
        if isinstance(getattr(network, "ones", None), Tensor):
            network.ones = nn.Parameter(old.new_ones(shape), requires_grad=False)
        network.last_layer.weight.data = weight.new_empty(len(weight), count)
        network.last_layer.in_features = count
        network.num_prototypes, network.prototype_shape = count, list(shape)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of PPNet or TESNet, running no code from the file.

    Whole modules (`torch.save(model)`, which is what the original writes), bare state dicts, state
    dicts inside a dictionary (`state_dict`, `model_state_dict`, `model`), any of these of a model
    in `nn.DataParallel`, of any version of torch, pruned or not. The classes that a whole module
    names need not exist: they are stood in for, never imported.

    Args:
        path: the file.

    Raises:
        CheckpointError: missing, damaged, not of such a network, or it calls something; the message
            says what.

    Example:
        >>> checkpoint = load_checkpoint("10push0.8123.pth")  # doctest: +SKIP
        >>> checkpoint.fill(ppnet)  # doctest: +SKIP
        >>> model = checkpoint.protopnet("resnet34")  # doctest: +SKIP
    """
    path = Path(path)
    found = read_file(path)
    if isinstance(found, dict):
        for key in _INSIDE:
            if isinstance(found.get(key), (dict, StandIn)):
                found = found[key]
                break
    module = found if isinstance(found, StandIn) else None
    if module is not None:
        inner = _children(module).get("module")
        module = inner if isinstance(inner, StandIn) else module
    state = dict(_tensors(module, path)) if module is not None else _bare(found)
    missing = [key for key in ("prototype_vectors", "last_layer.weight") if key not in state]
    if missing:
        raise CheckpointError(
            f"{path} does not hold a PPNet or TESNet: it has no {' and no '.join(missing)}"
        )
    prototypes, weight = state["prototype_vectors"], state["last_layer.weight"]
    if prototypes.dim() != 4 or weight.dim() != 2 or weight.shape[1] != len(prototypes):
        raise CheckpointError(
            f"{path} does not hold a PPNet or TESNet: prototype_vectors {list(prototypes.shape)} "
            f"and last_layer.weight {list(weight.shape)} are not [P, D, h, w] and [C, P]"
        )
    attributes = {} if module is None else vars(module)
    identity = attributes.get("prototype_class_identity")
    if isinstance(identity, Tensor) and identity.shape == weight.t().shape:
        classes, known = identity.detach().argmax(dim=1), True
    else:
        classes, known = weight.argmax(dim=0), False
    return Checkpoint(
        path,
        state,
        None if module is None else stand_in_name(module),
        {key: value for key, value in map(_described, attributes.items()) if key},
        classes,
        known,
    )


def _bare(found: object) -> dict[str, Tensor]:
    """A state dict's tensors, without the prefix of a wrapper."""
    if not isinstance(found, dict):
        return {}
    state = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: value.detach() for key, value in state.items()}


def _children(module: StandIn) -> dict[str, Any]:
    children = vars(module).get("_modules")
    return children if isinstance(children, dict) else {}


def _tensors(module: StandIn, path: Path) -> Iterator[tuple[str, Tensor]]:
    """What the module's state_dict() would have held, in its order.

    A module under two names is visited twice, as there; one inside itself is left out.
    """
    waiting: list[tuple[StandIn, str, tuple[int, ...]]] = [(module, "", ())]
    for _ in range(_MOST_MODULES):
        if not waiting:
            return
        current, prefix, above = waiting.pop()
        yield from _tensors_of_one(current, prefix)
        above = (*above, id(current))
        inner = [
            (child, f"{prefix}{name}.", above)
            for name, child in _children(current).items()
            if isinstance(child, StandIn) and id(child) not in above
        ]
        if len(above) > _DEEPEST or len(waiting) + len(inner) > _MOST_MODULES:
            break
        waiting += reversed(inner)
    if waiting or inner:
        raise CheckpointError(
            f"{path} holds modules more than {_DEEPEST} deep or more than {_MOST_MODULES} of them, "
            "which no PPNet or TESNet does"
        )


def _tensors_of_one(module: StandIn, prefix: str) -> Iterator[tuple[str, Tensor]]:
    attributes = vars(module)
    passing = attributes.get("_non_persistent_buffers_set", ())
    for group in ("_parameters", "_buffers"):
        values = attributes.get(group)
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, Tensor) and not (group == "_buffers" and name in passing):
                yield f"{prefix}{name}", value.detach()


def _described(item: tuple[str, Any]) -> tuple[str, Any]:
    """A module's attribute as plain data; an empty name for what is none."""
    name, value = item
    if name.startswith("_") or name == "training":
        return "", None
    if isinstance(value, type) and stand_in_name(value):
        return name, stand_in_name(value)  # a function or class, by name
    if isinstance(value, (list, tuple)) and all(isinstance(entry, _PLAIN) for entry in value):
        return name, type(value)(value)
    return (name, value) if isinstance(value, _PLAIN) else ("", None)


def _renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The original's keys as `ProtoPNet` has them."""
    for key, value in state.items():
        first, _, rest = key.partition(".")
        if key == "prototype_vectors":
            yield "prototype_layer.prototypes", value.flatten(1)
        elif first == "features":
            yield f"backbone.{rest}", value
        elif first == "add_on_layers":
            yield f"add_on.{rest}", value
        elif key != "ones":
            yield key, value


def _raise_if_different(
    source: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """Raise CheckpointError unless names and shapes agree; `ones` may be absent from either."""
    optional = {key for key in own if key.endswith("num_batches_tracked")} | {"ones"}
    missing = [key for key in own if key not in state and key not in optional]
    unexpected = [key for key in state if key not in own and key != "ones"]
    wrong = [
        f"{key} {list(value.shape)} instead of {list(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unknown", unexpected), ("of wrong shape", wrong))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the network: {'; '.join(problems)}")
