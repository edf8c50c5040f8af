"""What somebody else's prototype network has, and the formulas that go with it.

Networks are known by their attributes, never by their class: the original `PPNet` (Chen et al.
2019, released code) and its descendants, and `TESNet` (Wang et al. 2021). Their names for things
(`prototype_vectors`, `prototype_class_identity`) are kept here and nowhere else.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protofast.ops.distance_map import distance_map
from protofast.ops.dot_and_cosine import dot_and_cosine
from protofast.ops.nearest_patch import nearest_patch

METHODS = ("forward", "push_forward", "prototype_distances")
"""The methods that `accelerate` replaces."""

_PPNET_METHODS = (*METHODS, "conv_features", "distance_2_similarity")
_TESNET_METHODS = (*METHODS, "conv_features", "_project2basis", "_cosine_convolution")


class Nearest(NamedTuple):
    """The head's inputs, each [N, P]; `distances` is what `forward` returns beside the logits.

    For TESNet the two belong to different comparisons: activations are the largest projections,
    distances the least of -cos. `locations` are those of the activations.
    """

    activations: Tensor
    distances: Tensor
    locations: Tensor


class Formulas(NamedTuple):
    """How a kind of network compares features with its prototypes.

    name: what users call it.
    compared: network -> (prototypes as they are compared, metric), for `push_forward`'s distances.
    nearest: network, features [N, D, H, W] -> Nearest.
    maps: network, features -> what the network's `prototype_distances` returns.
    """

    name: str
    compared: Callable[[Any], tuple[Tensor, str]]
    nearest: Callable[[Any, Tensor], Nearest]
    maps: Callable[[Any, Tensor], Any]


def unwrapped(model: Any) -> nn.Module:
    """The network itself, out of `nn.DataParallel` or `DistributedDataParallel`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module; got {type(model).__name__}")
    inner = getattr(model, "module", None)
    if isinstance(inner, nn.Module) and not hasattr(model, "prototype_vectors"):
        return inner
    return model


def formulas_of(network: nn.Module) -> Formulas:
    """The formulas of a network, judged by its attributes alone.

    Raises:
        TypeError: attributes are missing or of another type; each is named.
        ValueError: an attribute has a value for which there is no fused operator.
    """
    tesnet = callable(getattr(network, "_project2basis", None))
    methods = _TESNET_METHODS if tesnet else _PPNET_METHODS
    wanted = ["prototype_vectors", "add_on_layers", "last_layer", *methods]
    if not tesnet:
        wanted += ["epsilon", "prototype_activation_function"]
    missing = [name for name in wanted if not hasattr(network, name)]
    if missing:
        raise TypeError(
            f"{type(network).__name__} is not laid out like PPNet or TESNet: it has no "
            f"{', '.join(missing)}"
        )
    _check_prototypes(network)
    if tesnet:
        return TESNET
    similarity_of(network)
    return PPNET


def similarity_of(network: Any) -> tuple[str | None, float]:
    """Name and eps of PPNet's similarity; the name is None where it is a function of its own.

    Raises:
        TypeError: `prototype_activation_function` is neither a string nor callable.
        ValueError: an unknown string, or `epsilon` outside (0, 1).
    """
    function = network.prototype_activation_function
    if function == "log":
        eps = float(network.epsilon)
        if not 0.0 < eps < 1.0:
            raise ValueError(f"epsilon must lie strictly between 0 and 1; got {eps}")
        return "log", eps
    if function == "linear":
        return "linear", 1e-4
    if isinstance(function, str):
        raise ValueError(
            "prototype_activation_function must be 'log', 'linear' or a function of distances; "
            f"got {function!r}"
        )
    if not callable(function):
        raise TypeError(
            "prototype_activation_function must be 'log', 'linear' or a function of distances; "
            f"got {type(function).__name__}"
        )
    return None, 1e-4


def prototype_classes(network: Any) -> Tensor:
    """The class of each prototype, int64 [P] on the CPU, from `prototype_class_identity` [P, C].

    Raises:
        TypeError, ValueError: it is missing or not [P, C].
    """
    identity = getattr(network, "prototype_class_identity", None)
    if not isinstance(identity, Tensor):
        raise TypeError(
            f"{type(network).__name__} has no tensor prototype_class_identity, which says the "
            "class of each prototype"
        )
    count = network.prototype_vectors.shape[0]
    if identity.dim() != 2 or identity.shape[0] != count:
        raise ValueError(
            f"prototype_class_identity must be [P, C] with P = {count}; got {list(identity.shape)}"
        )
    return identity.detach().cpu().argmax(dim=1)


def _check_prototypes(network: Any) -> None:
    prototypes = network.prototype_vectors
    if not isinstance(prototypes, Tensor) or not prototypes.is_floating_point():
        raise TypeError("prototype_vectors must be a floating-point parameter [P, D, h, w]")
    if prototypes.dim() != 4:
        raise ValueError(f"prototype_vectors must be [P, D, h, w]; got {list(prototypes.shape)}")
    ones = getattr(network, "ones", None)
    if not isinstance(ones, Tensor) or callable(getattr(network, "_project2basis", None)):
        return  # TESNet keeps `ones` in its state dict and never uses it
    if ones.requires_grad:
        raise ValueError(
            "ones requires a gradient, which the fused operators would not give it: set "
            "model.ones.requires_grad_(False), as in the original"
        )
    if ones.shape != prototypes.shape or not bool((ones == 1).all()):
        raise ValueError(
            "ones must be 1 everywhere and of the shape of prototype_vectors, "
            f"{list(prototypes.shape)}; other weights of the distance cannot be fused"
        )


# ----- PPNet -----


def _ppnet_compared(network: Any) -> tuple[Tensor, str]:
    return network.prototype_vectors, "squared_l2"


def _ppnet_nearest(network: Any, features: Tensor) -> Nearest:
    prototypes = network.prototype_vectors
    name, eps = similarity_of(network)
    found = nearest_patch(features, prototypes, similarity=name or "linear", eps=eps)
    distances = found.distances.to(prototypes.dtype)
    if name is None:  # of the least distances, as the original does; gradients pass through them
        return Nearest(network.distance_2_similarity(distances), distances, found.locations)
    return Nearest(found.activations.to(prototypes.dtype), distances, found.locations)


def _ppnet_maps(network: Any, features: Tensor) -> Tensor:
    prototypes = network.prototype_vectors
    return distance_map(features, prototypes).to(prototypes.dtype)


# ----- TESNet -----


def _tesnet_compared(network: Any) -> tuple[Tensor, str]:
    return F.normalize(network.prototype_vectors, dim=1), "dot"


def _tesnet_cosine(features: Tensor, directions: Tensor) -> tuple[Tensor, str]:
    """Features and metric for -cos; windows are normalised patch by patch, as in the original."""
    if directions.shape[2:] == (1, 1):
        return features, "cosine"
    return F.normalize(features, dim=1), "dot"


def _tesnet_nearest(network: Any, features: Tensor) -> Nearest:
    directions, metric = _tesnet_compared(network)
    if directions.shape[2:] == (1, 1):  # both from one matrix product
        both = dot_and_cosine(features, directions)
        dots, cosines = both.dots.to(directions.dtype), both.cosines.to(directions.dtype)
        return Nearest(dots, -cosines, both.dot_locations)
    projected = nearest_patch(features, directions, metric=metric, similarity="linear")
    units, metric = _tesnet_cosine(features, directions)
    cosine = nearest_patch(units, directions, metric=metric, similarity="linear")
    dtype = directions.dtype
    return Nearest(projected.activations.to(dtype), cosine.distances.to(dtype), projected.locations)


def _tesnet_maps(network: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    directions, metric = _tesnet_compared(network)
    projections = -distance_map(features, directions, metric=metric)
    units, metric = _tesnet_cosine(features, directions)
    cosines = distance_map(units, directions, metric=metric)
    return projections.to(directions.dtype), cosines.to(directions.dtype)


PPNET = Formulas("PPNet", _ppnet_compared, _ppnet_nearest, _ppnet_maps)
TESNET = Formulas("TESNet", _tesnet_compared, _tesnet_nearest, _tesnet_maps)


# ----- from features to what the three methods return -----


def forward(formulas: Formulas, network: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [N, C], distances [N, P]), as the network's `forward`."""
    found = formulas.nearest(network, features)
    return network.last_layer(found.activations), found.distances


def push_forward(formulas: Formulas, network: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    """(features, distances to every patch [N, P, H, W]), as the network's `push_forward`."""
    prototypes, metric = formulas.compared(network)
    return features, distance_map(features, prototypes, metric=metric).to(prototypes.dtype)


def prototype_distances(formulas: Formulas, network: Any, features: Tensor) -> Any:
    """As the network's `prototype_distances`: a map, or TESNet's two maps."""
    return formulas.maps(network, features)


FROM_FEATURES: dict[str, Callable[[Formulas, Any, Tensor], Any]] = {
    "forward": forward,
    "push_forward": push_forward,
    "prototype_distances": prototype_distances,
}
"""For each of METHODS, what it returns, computed from the features by the fused operators."""


# ----- does the network's own code do what these formulas say? -----


@torch.no_grad()
def check_behaviour(
    network: nn.Module,
    plain: type[nn.Module],
    formulas: Formulas,
    methods: tuple[str, ...] = METHODS,
) -> None:
    """Compare `methods` of the class `plain` with the fused formulas on a few features.

    In float64, on a copy of the head alone: neither the backbone nor the network's own parameters
    and random state are touched. A descendant that computes something else is thus found out
    whatever it is called.

    Raises:
        ValueError: naming the method and what differs.
    """
    prototypes = network.prototype_vectors
    assert isinstance(prototypes, Tensor)
    depth, height, width = prototypes.shape[1:]
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(
        (2, depth, height + 2, width + 1), dtype=torch.float64, generator=generator
    ).to(prototypes.device)
    devices = [prototypes.device] if prototypes.is_cuda else []
    with torch.random.fork_rng(devices), torch.autocast(prototypes.device.type, enabled=False):
        for training in (False, True):
            head = _head(network, plain)
            head.training = training
            for name in methods:
                try:
                    own = getattr(plain, name)(head, features)
                except Exception as error:  # whatever somebody else's code may raise
                    raise ValueError(
                        f"cannot tell what {plain.__name__}.{name} computes: given features in "
                        f"place of images it fails with {type(error).__name__}: {error}"
                    ) from error
                fused = FROM_FEATURES[name](formulas, head, features)
                difference = _difference(own, fused)
                if difference:
                    raise ValueError(
                        f"{plain.__name__}.{name} does not compute what the original "
                        f"{formulas.name}'s does: {difference}; its own code stays in use"
                    )


def _head(network: nn.Module, plain: type[nn.Module]) -> nn.Module:
    """A float64 copy of the network whose images are features: what is before them is left out."""
    head = plain.__new__(plain)
    head.__dict__.update(network.__dict__)
    head._parameters = {
        name: None if value is None else nn.Parameter(value.double(), value.requires_grad)
        for name, value in network._parameters.items()
    }
    head._buffers = {
        name: value.double() if value is not None and value.is_floating_point() else value
        for name, value in network._buffers.items()
    }
    head._modules = {
        name: nn.Identity()
        if name in ("features", "add_on_layers")
        else copy.deepcopy(module).double()
        if module is not None
        else None
        for name, module in network._modules.items()
    }
    head.__dict__["conv_features"] = lambda images: images
    _make_telling(head)
    return head


def _make_telling(head: Any) -> None:
    """Numbers in which a difference shows: of a zero last layer, all logits agree."""
    generator = torch.Generator().manual_seed(1)

    def fill(parameter: Tensor) -> None:
        values = torch.rand(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.data.copy_(values)

    if not bool(head.prototype_vectors.isfinite().all()):
        fill(head.prototype_vectors)
    for parameter in head.last_layer.parameters():
        fill(parameter)


def _difference(own: Any, fused: Any) -> str:
    """In words, how two results differ; empty where they agree to rounding."""
    if isinstance(fused, tuple):
        if not isinstance(own, tuple) or len(own) != len(fused):
            count = len(own) if isinstance(own, tuple) else 1
            return f"it returns {count} value(s) where {len(fused)} are expected"
        return next((text for text in map(_difference, own, fused) if text), "")
    if not isinstance(own, Tensor):
        return f"it returns {type(own).__name__} where a tensor is expected"
    if own.shape != fused.shape:
        return f"it returns a tensor {list(own.shape)} where {list(fused.shape)} is expected"
    if not torch.allclose(own.to(fused.dtype), fused, rtol=1e-6, atol=1e-7, equal_nan=True):
        largest = float((own - fused).abs().amax())
        return f"its values differ by up to {largest:.3g}"
    return ""
