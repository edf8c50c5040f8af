"""ProtoPNet (Chen et al. 2019): a backbone, add-on layers, prototypes, and a last layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from protofast.layers import PrototypeLayer
from protofast.models.backbones import build_backbone
from protofast.models.protocol import Output, PrototypeModel
from protofast.models.receptive_field import ReceptiveField, receptive_field
from protofast.ops import NearestPatch, NearPairs, nearest_patch, nearest_patch_within

OWN_CLASS_WEIGHT, OTHER_CLASS_WEIGHT = 1.0, -0.5
"""The last layer before training: from a prototype to its own class, and to every other."""


class ProtoPNet(PrototypeModel):
    """ProtoPNet ("This Looks Like That", Chen et al. 2019) with any backbone.

    Images [N, channels, S, T] in [0, 1] -> `backbone` -> `add_on` -> features [N, D, H, W] ->
    `prototype_layer` -> activations [N, P] -> `last_layer` -> logits [N, C].

    State dict: `backbone.*`, `add_on.{0,2,...}.{weight,bias}`, `prototype_layer.prototypes` [P, D],
    `last_layer.weight` [C, P], and the buffers `prototype_class` [P], `mean` and `std` [channels].

    Args:
        backbone: from `build_backbone`, or any module that maps images to [N, channels, H, W].
        num_classes: C.
        prototypes_per_class: prototype j belongs to class j // prototypes_per_class.
        prototype_class: in place of `prototypes_per_class`, the class of each prototype, [P]; a
            class may have any number of them (as pruning leaves them).
        depth: D. The paper takes 128; Hoffmann et al. 2021 take 256 with ResNet-34.
        add_on: `regular` (two 1 x 1 convolutions, with ReLU and sigmoid) or `bottleneck` (pairs of
            them, halving the channels until D).
        metric: as for `PrototypeLayer`; likewise `similarity` and `eps`.
        similarity: see there.
        eps: see there.
        input_size: (S, T), as for `PrototypeModel`; likewise `num_channels`, `mean` and `std`.
        num_channels: see there.
        mean: see there.
        std: see there.
        backbone_depth: channels that the backbone gives; None asks its `out_channels`, or else
            passes an empty image through it.

    Raises:
        ValueError: sizes or options that do not fit.

    >>> model = ProtoPNet(build_backbone("small"), num_classes=4, prototypes_per_class=2, depth=16)
    >>> output = model(torch.rand(3, 3, 64, 96))
    >>> output.logits.shape, output.activations.shape
    (torch.Size([3, 4]), torch.Size([3, 8]))
    """

    prototype_class: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_classes: int,
        prototypes_per_class: int = 10,
        prototype_class: Sequence[int] | None = None,
        depth: int = 128,
        add_on: str = "regular",
        metric: str = "squared_l2",
        similarity: str = "log",
        eps: float = 1e-4,
        input_size: tuple[int, int] = (224, 224),
        num_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        backbone_depth: int | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            num_channels=num_channels,
            input_size=input_size,
            mean=mean,
            std=std,
        )
        classes = _prototype_classes(num_classes, prototypes_per_class, prototype_class)
        if backbone_depth is None:
            backbone_depth = _backbone_depth(backbone, num_channels, self.input_size)
        self.backbone_depth = backbone_depth
        self.backbone = backbone
        self.add_on_kind = add_on
        self.prototype_layer = PrototypeLayer(
            len(classes), depth, metric=metric, similarity=similarity, eps=eps
        )
        self.add_on = _add_on(add_on, backbone_depth, depth)
        self.prototype_class = classes
        self.last_layer = nn.Linear(len(classes), num_classes, bias=False)
        self.reset_last_layer()

    @property
    def prototypes(self) -> nn.Parameter:
        """[P, D]."""
        return self.prototype_layer.prototypes

    def features(self, images: Tensor) -> Tensor:
        """Latent maps [N, D, H, W] of images [N, channels, S, T] in [0, 1]."""
        features: Tensor = self.add_on(self.backbone(self.normalise(images)))
        return features

    def classify(self, features: Tensor) -> Output:
        """The head alone; the last layer computes in float32 even under autocast."""
        activations, distances, locations = self.prototype_layer(features)
        with torch.autocast(features.device.type, enabled=False):
            logits = F.linear(activations, self.last_layer.weight.to(activations.dtype))
        return Output(logits, activations, distances, locations)

    def nearest_patch(self, features: Tensor, chosen: Tensor | None = None) -> NearestPatch:
        """The prototype layer for the prototypes `chosen` (int64 [K]; None: all): each [N, K]."""
        layer = self.prototype_layer
        if chosen is None:
            found: NearestPatch = layer(features)
            return found
        return nearest_patch(
            features,
            layer.prototypes[chosen],
            metric=layer.metric,
            similarity=layer.similarity,
            eps=layer.eps,
        )

    def nearest_patch_within(self, features: Tensor, limits: Tensor) -> NearPairs:
        """Of the prototype layer, the pairs with a distance of at most `limits` (float64 [P])."""
        layer = self.prototype_layer
        own_rule = getattr(self.nearest_patch, "__func__", None) is not ProtoPNet.nearest_patch
        own_layer = type(layer) is not PrototypeLayer or "forward" in vars(layer)
        if own_rule or own_layer or layer._forward_hooks or layer.is_frozen:
            return super().nearest_patch_within(features, limits)
        return nearest_patch_within(features, layer.prototypes, limits, metric=layer.metric)

    def similarity_map(self, features: Tensor, index: Tensor | None = None) -> Tensor:
        """Similarity to every patch, [N, K, H, W], of the prototypes `index` [N, K] (None: all)."""
        return self.prototype_layer.similarity_map(features, index)

    def contributions(self, output: Output) -> Tensor:
        """Activation times last-layer weight, [N, C, P]; their sums over P are the logits."""
        return output.activations.unsqueeze(1) * self.last_layer.weight

    def receptive_field(self) -> ReceptiveField | None:
        """What each location sees of an image of `input_size`, if the backbone has `windows`."""
        windows = getattr(self.backbone, "windows", None)
        return None if windows is None else receptive_field(windows, self.input_size)

    @torch.no_grad()
    def reset_last_layer(self) -> None:
        """Weight +1 from each prototype to its own class and -0.5 to every other."""
        classes = torch.arange(self.num_classes, device=self.prototype_class.device)
        own = classes.unsqueeze(1) == self.prototype_class  # [C, P]
        self.last_layer.weight.copy_(torch.where(own, OWN_CLASS_WEIGHT, OTHER_CLASS_WEIGHT))

    @torch.no_grad()
    def prune(self, keep: Tensor) -> None:
        """Keep only the prototypes `keep` (int64 [K], distinct), in their order; in place.

        `prototype_layer.prototypes` and `last_layer.weight` become new Parameters: an optimiser
        made before must be made again.

        Raises:
            TypeError: `keep` is not int64 [K].
            ValueError: it is empty, or names a prototype twice or one that does not exist.
        """
        keep = _checked_keep(keep, self.num_prototypes).to(self.prototype_class.device)
        old, weight = self.prototype_layer.prototypes, self.last_layer.weight
        self.prototype_layer.prototypes = nn.Parameter(old[keep], requires_grad=old.requires_grad)
        self.last_layer.weight = nn.Parameter(weight[:, keep], requires_grad=weight.requires_grad)
        self.last_layer.in_features = len(keep)
        self.prototype_class = self.prototype_class[keep]

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build this model again without its weights; JSON values.

        `backbone` is None for a module that did not come from `build_backbone`.
        """
        layer = self.prototype_layer
        backbone = getattr(self.backbone, "config", None)
        return {
            "backbone": None if backbone is None else dict(backbone),
            "num_classes": self.num_classes,
            "prototype_class": self.prototype_class.tolist(),
            "depth": layer.depth,
            "add_on": self.add_on_kind,
            "metric": layer.metric,
            "similarity": layer.similarity,
            "eps": layer.eps,
            "input_size": list(self.input_size),
            "num_channels": self.num_channels,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "backbone_depth": self.backbone_depth,
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, backbone: nn.Module | None = None
    ) -> "ProtoPNet":
        """Build the model that `config` describes, with fresh weights, ready for `load_state_dict`.

        Args:
            config: what the property `config` gave, also after a way through JSON.
            backbone: in place of the one that `config` names; needed if it names none.

        Raises:
            ValueError: `config` names no backbone and none is given.
        """
        arguments = dict(config)
        named = arguments.pop("backbone")
        if backbone is None and named is None:
            raise ValueError(
                "this model's backbone was not made by build_backbone; pass the module it was "
                "built with: from_config(config, backbone=...)"
            )
        if backbone is None:
            backbone = build_backbone(**named)
        arguments["input_size"] = tuple(arguments["input_size"])
        return cls(backbone, **arguments)


def _prototype_classes(num_classes: int, per_class: int, given: Sequence[int] | None) -> Tensor:
    """The class of each prototype, int64 [P]."""
    if given is None:
        if per_class < 1:
            raise ValueError(f"prototypes_per_class must be at least 1; got {per_class}")
        return torch.arange(num_classes).repeat_interleave(per_class)
    classes = torch.tensor([int(value) for value in given], dtype=torch.int64)
    if len(classes) == 0:
        raise ValueError("prototype_class must name the class of at least one prototype; got none")
    if int(classes.min()) < 0 or int(classes.max()) >= num_classes:
        raise ValueError(
            f"prototype_class must lie in 0...{num_classes - 1}; got {int(classes.min())}..."
            f"{int(classes.max())}"
        )
    return classes


def _add_on(kind: str, channels: int, depth: int) -> nn.Sequential:
    """The 1 x 1 convolutions between backbone and prototypes; they end in a sigmoid."""
    layers: list[nn.Module] = []
    if kind == "regular":
        layers += [nn.Conv2d(channels, depth, 1), nn.ReLU()]
        layers += [nn.Conv2d(depth, depth, 1), nn.Sigmoid()]
    elif kind == "bottleneck":
        while not layers or channels > depth:
            width = max(depth, channels // 2)
            layers += [nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1)]
            layers.append(nn.ReLU() if width > depth else nn.Sigmoid())
            channels = width
    else:
        raise ValueError(f"add_on must be 'regular' or 'bottleneck'; got {kind!r}")
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def _backbone_depth(backbone: nn.Module, num_channels: int, input_size: tuple[int, int]) -> int:
    """Channels of the backbone's output: what it says, or what it gives for an empty image."""
    said = getattr(backbone, "out_channels", None)
    if isinstance(said, int):
        return said
    modes = {module: module.training for module in backbone.modules()}
    example = next(backbone.parameters(), torch.empty(0))
    backbone.eval()
    try:
        with torch.no_grad():
            features = backbone(example.new_zeros(1, num_channels, *input_size))
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(features, Tensor) or features.dim() != 4:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"the backbone must give a latent map [N, channels, H, W]; got {got}: leave out its "
            "pooling and its classifier"
        )
    return int(features.shape[1])


def _checked_keep(keep: Tensor, num_prototypes: int) -> Tensor:
    """`keep` in ascending order."""
    if not isinstance(keep, Tensor) or keep.dtype != torch.int64 or keep.dim() != 1:
        got = f"{keep.dtype} {list(keep.shape)}" if isinstance(keep, Tensor) else repr(keep)
        raise TypeError(
            "keep must be the numbers of prototypes, a tensor int64 [K] (of a mask: "
            f"mask.nonzero()[:, 0]); got {got}"
        )
    ordered: Tensor = keep.unique()
    if len(keep) == 0 or len(ordered) != len(keep):
        raise ValueError(f"keep must name distinct prototypes, at least one; got {keep.tolist()}")
    if int(ordered[0]) < 0 or int(ordered[-1]) >= num_prototypes:
        raise ValueError(
            f"keep must lie in 0...{num_prototypes - 1}; got {int(ordered[0])}...{int(ordered[-1])}"
        )
    return ordered
