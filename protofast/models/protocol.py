"""The model protocol: what training, explanations, attacks and audits may ask of a network.

They rely on `PrototypeModel` as written here and on nothing more, so a further network (TesNet,
ProtoPool, ProtoTree, or somebody's own) becomes usable everywhere by implementing the abstract
parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from protofast.models.receptive_field import ReceptiveField
from protofast.ops import NearestPatch, NearPairs
from protofast.ops.nearest_patch_within import pairs_within

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Output(NamedTuple):
    """What a forward pass gives; floats are float32, or float64 for a float64 model.

    logits: [N, C]; a model whose head gives probabilities puts their logarithm here.
    activations: [N, P], the largest similarity of each prototype to any patch.
    distances: [N, P], the distance at that patch, in the model's own metric.
    locations: [N, P] int64 in [0, H*W), row-major: where that patch is.
    """

    logits: Tensor
    activations: Tensor
    distances: Tensor
    locations: Tensor


class PrototypeModel(nn.Module, ABC):
    """Base of every prototype network; see the module's docstring.

    A subclass implements `prototypes`, `features`, `classify`, `similarity_map` and
    `contributions`, calls `self.normalise(images)` first thing in `features`, and sets
    `self.prototype_class` where each of its prototypes belongs to one class. All else has a
    default.

    Args:
        num_classes: C.
        num_channels: of the images.
        input_size: (S, T), height and width of the images the model is meant for, not necessarily
            square. Images of other sizes pass where the backbone lets them; receptive fields refer
            to this one.
        mean: per channel, of images in [0, 1]. None takes ImageNet's (the average of the colours
            where images do not have three channels).
        std: likewise.

    Attributes:
        prototype_class: buffer int64 [P], the class of each prototype; None if they have none.
        mean: buffer [num_channels], saved with the model.
        std: likewise.

    Raises:
        ValueError: sizes below one, or `mean` or `std` of another length than `num_channels`.
    """

    prototype_class: Tensor | None
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        num_channels: int = 3,
        input_size: tuple[int, int] = (224, 224),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1 or num_channels < 1:
            raise ValueError(
                f"num_classes and num_channels must be at least 1; got {num_classes} and "
                f"{num_channels}"
            )
        if not isinstance(input_size, Sequence) or len(input_size) != 2:
            raise ValueError(f"input_size must be (height, width) in pixels; got {input_size!r}")
        height, width = input_size
        if height < 1 or width < 1:
            raise ValueError(f"input_size must be (height, width) in pixels; got {input_size}")
        self.num_classes = num_classes
        self.num_channels = num_channels
        self.input_size = (int(height), int(width))
        self.register_buffer("prototype_class", None)
        self.register_buffer("mean", _per_channel("mean", mean, IMAGENET_MEAN, num_channels))
        self.register_buffer("std", _per_channel("std", std, IMAGENET_STD, num_channels))
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be positive; got {self.std.tolist()}")
        self._range_checked = False

    # ----- what a model must say -----

    @property
    @abstractmethod
    def prototypes(self) -> nn.Parameter:
        """The prototypes [P, D], into which projection writes."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Latent maps [N, D, H, W] of images, float in [0, 1], [N, channels, S, T]."""

    @abstractmethod
    def classify(self, features: Tensor) -> Output:
        """The head alone: `features` [N, D, H, W] -> Output."""

    @abstractmethod
    def similarity_map(self, features: Tensor, index: Tensor | None = None) -> Tensor:
        """Similarity to every patch, [N, K, H, W], of the prototypes `index` [N, K] (None: all).

        The maximum over H, W is the activation that `classify` gives, and lies at its location.
        """

    @abstractmethod
    def contributions(self, output: Output) -> Tensor:
        """What each prototype adds to each class, [N, C, P], in the terms of the model's head."""

    # ----- what follows from it -----

    @property
    def num_prototypes(self) -> int:
        """P."""
        return self.prototypes.shape[0]

    def forward(self, images: Tensor) -> Output:
        """Images, float in [0, 1], [N, channels, S, T] -> Output."""
        return self.classify(self.features(images))

    def nearest_patch(self, features: Tensor, chosen: Tensor | None = None) -> NearestPatch:
        """What `classify` says of the prototypes `chosen` (int64 [K]; None: all): each [N, K].

        Projection and pruning go through a set of images with it. A model that can leave out the
        logits, and the prototypes not chosen, overrides it; every number must stay the same.
        """
        _, *found = self.classify(features)
        return NearestPatch(*(part if chosen is None else part[:, chosen] for part in found))

    def nearest_patch_within(self, features: Tensor, limits: Tensor) -> NearPairs:
        """Of `nearest_patch`, the pairs with a distance of at most `limits` (float64 [P]).

        Also those whose distance is not finite. Pruning goes through a set of images with it. A
        model that can leave out the others before computing them overrides it; every number must
        stay the same.
        """
        return pairs_within(self.nearest_patch(features), limits)

    def receptive_field(self) -> ReceptiveField | None:
        """What each location sees of an image of `input_size`; None where that is not known."""
        return None

    def prune(self, keep: Tensor) -> None:
        """Keep only the prototypes `keep` (int64 [K], distinct), in their order; in place."""
        raise NotImplementedError(f"{type(self).__name__} cannot be pruned")

    def logits_only(self) -> nn.Module:
        """This model as a module that returns the logits [N, C] alone; it shares the weights."""
        return LogitsOnly(self)

    def normalise(self, images: Tensor) -> Tensor:
        """Check images as described in `check_images`, then (images - mean) / std."""
        self.check_images(images)
        mean, std = self.mean.view(-1, 1, 1), self.std.view(-1, 1, 1)
        return ((images - mean) / std).to(mean.dtype)

    def check_images(self, images: Tensor) -> None:
        """Raise unless images are floating point [N, num_channels, S, T].

        That the values lie in [0, 1] is looked at once, on the first images the model is given, and
        with room on both sides for what attacks add: looking each time would wait for a GPU.

        Raises:
            TypeError: not a floating-point tensor.
            ValueError: shape, channels or range do not fit.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a torch.Tensor; got {type(images).__name__}")
        if not images.is_floating_point():
            raise TypeError(
                f"images must be floating point in [0, 1]; got {images.dtype}: of bytes, pass "
                "images.float() / 255"
            )
        if images.dim() != 4:
            raise ValueError(
                f"images must be [N, {self.num_channels}, height, width]; got {list(images.shape)}"
            )
        if images.shape[1] != self.num_channels:
            raise ValueError(
                f"the model was built for images of {self.num_channels} channel(s); got "
                f"{images.shape[1]} in images of shape {list(images.shape)}"
            )
        if not (torch.compiler.is_compiling() or self._range_checked):
            self._check_range(images)

    def _check_range(self, images: Tensor) -> None:
        if images.numel() == 0 or (images.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        try:
            least, largest = (float(value) for value in images.detach().aminmax())
        except RuntimeError:  # fake tensors and function transforms hide the values
            return
        if not (least >= -0.5 and largest <= 1.5):  # so that NaN is out of range, too
            raise ValueError(
                f"images must lie in [0, 1]; got values from {least:.4g} to {largest:.4g}: the "
                "model normalises inside, so pass them as they are, and bytes divided by 255"
            )
        self._range_checked = True


class LogitsOnly(nn.Module):
    """A prototype model seen as a plain classifier: images [N, channels, S, T] -> logits [N, C]."""

    def __init__(self, model: PrototypeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """The logits alone."""
        output: Output = self.model(images)
        return output.logits


def _per_channel(
    name: str, values: Sequence[float] | None, imagenet: Sequence[float], channels: int
) -> Tensor:
    if values is None:
        average = sum(imagenet) / len(imagenet)
        values = imagenet if channels == len(imagenet) else (average,) * channels
    if len(values) != channels:
        raise ValueError(
            f"{name} must have one number for each of the {channels} channels; got {len(values)}"
        )
    return torch.tensor([float(value) for value in values])
