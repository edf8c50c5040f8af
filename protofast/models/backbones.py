"""Backbones by name: torchvision's classifiers up to their last latent map, and our own small one.

A backbone maps normalised images [N, channels, S, T] to [N, out_channels, H, W] and carries

    out_channels: its depth.
    stride: pixels from one location to the next.
    windows: its convolutions and poolings, from which receptive fields follow.
    config: the arguments that `build_backbone` needs to build it again without weights.

All of these are optional for a module of your own (see `ProtoPNet`). The keys of torchvision's
state dicts are kept.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from protofast.errors import CheckpointError, InstallError, SettingsError
from protofast.models.receptive_field import Window
from protofast.models.small import SmallBackbone

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet152")
_VGGS = {"vgg16": "D", "vgg16_bn": "D", "vgg19": "E", "vgg19_bn": "E"}
_DENSENETS = ("densenet121", "densenet161")

BACKBONES: tuple[str, ...] = ("small", *_RESNETS, *_VGGS, *_DENSENETS)
"""The names that `build_backbone` knows; all but `small` need torchvision."""


def build_backbone(
    name: str, *, num_channels: int = 3, weights: str | Path | None = None
) -> nn.Module:
    """Build the backbone called `name`.

    - `resnet18`, `resnet34`, `resnet50`, `resnet152`: without average pooling and classifier;
    - `vgg16`, `vgg19`, and `vgg16_bn`, `vgg19_bn` with batch norm: the last max-pool stays;
    - `densenet121`, `densenet161`: with a ReLU after the last batch norm;
    - `small`: `SmallBackbone`.

    Args:
        name: one of `BACKBONES`.
        num_channels: of the images. With weights made for more channels, an image of one channel
            passes as if it were repeated: the first convolution's weights are summed over channels.
        weights: `"imagenet"` downloads torchvision's IMAGENET1K_V1 weights (those of the papers),
            or takes them from its cache; a path loads a state dict (`.safetensors`, else as
            torch.save wrote it) without its classifier; None starts from scratch.

    Raises:
        SettingsError: unknown name, or ImageNet weights that do not exist.
        InstallError: torchvision, or safetensors for such a file, is not installed.
        CheckpointError: weights are missing, damaged, or do not fit.
    """
    if name not in BACKBONES:
        raise SettingsError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}")
    if num_channels < 1:
        raise ValueError(f"num_channels must be at least 1; got {num_channels}")
    backbone: nn.Module = (
        SmallBackbone(num_channels) if name == "small" else _from_torchvision(name, num_channels)
    )
    if weights == "imagenet":
        _load(backbone, _imagenet_weights(name), f"the ImageNet weights of {name}")
    elif weights is not None:
        _load(backbone, _read_weights(Path(weights)), str(weights))
    return backbone


class TorchvisionBackbone(nn.Sequential):
    """Part of a torchvision classifier, under torchvision's own names."""

    def __init__(self, name: str, parts: dict[str, nn.Module], out_channels: int) -> None:
        super().__init__(OrderedDict(parts))
        self.out_channels = out_channels
        self.windows = tuple(_windows(self))
        self.stride = 1
        for window in self.windows:
            self.stride *= window.stride
        self.config: dict[str, Any] = {"name": name, "num_channels": 3}


def _torchvision(needed_for: str) -> ModuleType:
    try:
        import torchvision
    except ImportError as error:
        raise InstallError(
            f"{needed_for} needs torchvision: pip install 'protofast[all]'"
        ) from error
    models: ModuleType = torchvision.models
    return models


def _from_torchvision(name: str, num_channels: int) -> TorchvisionBackbone:
    backbone = _three_channels(name)
    if num_channels != 3:
        _replace_first_convolution(backbone, num_channels)
    return backbone


def _three_channels(name: str) -> TorchvisionBackbone:
    models = _torchvision(f"backbone {name!r}")
    if name in _RESNETS:
        net = models.get_model(name, weights=None)
        parts = {
            part: child for part, child in net.named_children() if part not in ("avgpool", "fc")
        }
        return TorchvisionBackbone(name, parts, net.fc.in_features)
    if name in _DENSENETS:
        net = models.get_model(name, weights=None)
        parts = {"features": net.features, "final_relu": nn.ReLU(inplace=True)}
        return TorchvisionBackbone(name, parts, net.classifier.in_features)
    # Only the convolutions are made: the classifier, half a gigabyte, would be thrown away.
    layers = models.vgg.make_layers(models.vgg.cfgs[_VGGS[name]], batch_norm=name.endswith("_bn"))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            _initialise(layer)
    return TorchvisionBackbone(name, {"features": layers}, 512)


def _initialise(convolution: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def _windows(backbone: nn.Module) -> Iterator[Window]:
    """Convolutions and poolings on the main path; the shortcuts of a ResNet do not count."""
    for name, module in backbone.named_modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) and "downsample" not in name:
            sizes = (module.kernel_size, module.stride, module.padding)
            yield Window(*(_pair(size)[0] for size in sizes))


def _first_convolution(backbone: nn.Module) -> str:
    """Its name among the modules."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            return str(name)
    raise ValueError("the backbone has no convolution")


def _replace_first_convolution(backbone: TorchvisionBackbone, num_channels: int) -> None:
    parent, _, child = _first_convolution(backbone).rpartition(".")
    convolution = backbone.get_submodule(f"{parent}.{child}" if parent else child)
    assert isinstance(convolution, nn.Conv2d)
    new = nn.Conv2d(
        num_channels,
        convolution.out_channels,
        _pair(convolution.kernel_size),
        stride=_pair(convolution.stride),
        padding=_pair(convolution.padding),
        bias=convolution.bias is not None,
    )
    _initialise(new)
    setattr(backbone.get_submodule(parent), child, new)
    backbone.config["num_channels"] = num_channels


def _pair(size: object) -> tuple[int, int]:
    """(height, width) of a layer's kernel size, stride or padding."""
    if isinstance(size, int):
        return size, size
    assert isinstance(size, tuple)
    return size[0], size[1]


def _imagenet_weights(name: str) -> dict[str, Tensor]:
    if name == "small":
        raise SettingsError(
            "backbone 'small' has no ImageNet weights; take another, or the path of a weights file"
        )
    weights = _torchvision("downloading weights").get_model_weights(name).IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, no space; a file cut short
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the ImageNet weights of {name} could not be downloaded ({reason}); download "
            f"{weights.url} where there is a network and give the file's path as weights "
            "(model.weights in settings), or train without (none)"
        ) from error
    return dict(state)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a file; nothing in the file is executed."""
    if not path.is_file():
        raise CheckpointError(
            f"no weights file {path}; weights must be 'imagenet', the path of a file, or nothing"
        )
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = _read_safetensors(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except InstallError:
        raise
    except Exception as error:  # each format has errors of its own for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a state dict: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(item, Tensor) for item in state.values()):
        raise CheckpointError(f"{path} does not hold a state dict (names and tensors)")
    return {str(key).removeprefix("module."): item for key, item in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise InstallError(
            f"reading {path} needs safetensors: pip install 'protofast[all]'"
        ) from error
    state: dict[str, Tensor] = load_file(path)
    return state


def _load(backbone: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a classifier's state dict into its backbone, or say what does not fit."""
    # DenseNet's published files have names such as denselayer1.norm.1.weight.
    old_name = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
    state = {
        old_name.sub(r"\1\2.", key): item
        for key, item in state.items()
        if not key.startswith(("fc.", "classifier."))
    }
    first = _first_convolution(backbone) + ".weight"
    own = backbone.state_dict()
    if first in state and own[first].shape[1] == 1:
        state[first] = state[first].sum(dim=1, keepdim=True)
    # Files from before PyTorch 0.4.1 do not have the counters of batch norm.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    wrong = [
        f"{key} {list(item.shape)} instead of {list(own[key].shape)}"
        for key, item in state.items()
        if key in own and item.shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unknown", unexpected), ("of wrong shape", wrong))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit this backbone: {'; '.join(problems)}")
    backbone.load_state_dict(state, strict=False)
