"""Image encoders: convolutional trunks that turn pixels into a grid of annotations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.errors import CheckpointError, ConfigError
from training.annotations import pooling_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderOptions:
    """Which trunk, with which weights.

    name : a key of the registry, see `encoder_names`
    weights : "default" (torchvision's pretrained ones, downloaded by torchvision), "none" (random) or a path to a
        safetensors file with torchvision's key names
    grid : side of the grid of places that attention chooses from, made of the trunk's cells by adaptive average
        pooling; 0 takes the cells as places
    frozen : keep the trunk fixed, in evaluation mode
    """

    name: str
    weights: str = "none"
    grid: int = 0
    frozen: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.name not in encoder_names():
            problems.append(f"unknown encoder {self.name!r}, choose from {', '.join(encoder_names())}")
        if self.grid < 0:
            problems.append(f"grid must be 0 or more, got {self.grid}")
        if self.name == "compact" and self.weights == "default":
            problems.append('there are no pretrained weights of "compact": use weights = "none" or a path')
        if problems:
            raise ConfigError("invalid encoder: " + "; ".join(problems))


class Encoder(nn.Module):
    """A trunk: normalised images (B, 3, S, S) to annotations (B, C, D), rows of their grid first.

    They are those of the trunk's cells, or of a grid with fewer places, which is pooled here. A grid with more places
    is not: its annotations are means of those that there are, and `training.annotations.Annotations` knows of which.
    """

    def __init__(self, options: EncoderOptions, *, pretrained: bool = False) -> None:
        """`pretrained` fetches the weights that the options name; without it they stay random, to be loaded later."""
        super().__init__()
        self.options = options
        self.trunk, self.width = _build(options.name)
        if pretrained:
            _load_weights(self.trunk, options)
        if options.frozen:
            self.trunk.requires_grad_(False)

    def train(self, mode: bool = True) -> Encoder:
        """Like `nn.Module.train`, but a frozen trunk keeps its batch statistics and has no dropout."""
        super().train(mode)
        if self.options.frozen:
            self.trunk.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Annotations (B, C, D) of normalised images (B, 3, S, S)."""
        features: Tensor = self.trunk(images)
        values = features.flatten(2).transpose(1, 2)
        cells, places = values.shape[1], self.options.grid**2
        return pooling_weights(cells, places, values) @ values if 0 < places < cells else values

    def grid(self, size: int) -> tuple[int, int]:
        """Rows and columns of the grid of places for images of `size` pixels a side."""
        side = self.options.grid or self._trunk_side(size)
        return side, side

    def cells(self, size: int) -> int:
        """Number C of annotations of such an image."""
        side = self._trunk_side(size)
        return min(self.options.grid or side, side) ** 2

    def _trunk_side(self, size: int) -> int:
        weights = next(self.trunk.parameters())
        was_training = self.trunk.training
        with torch.inference_mode():
            side: int = self.trunk.eval()(weights.new_zeros(1, 3, size, size)).shape[-1]
        self.trunk.train(was_training)
        return side


def encoder_names() -> tuple[str, ...]:
    """Names the registry knows."""
    return tuple(_TRUNKS)


def _build(name: str) -> tuple[nn.Module, int]:
    return _TRUNKS[name]()


def _load_weights(trunk: nn.Module, options: EncoderOptions) -> None:
    if options.weights == "none":
        return
    if options.weights == "default":
        state = _torchvision_weights(options.name)
    else:
        state = _safetensors_weights(Path(options.weights))
    wanted = trunk.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise CheckpointError(
            f"{options.weights}: {len(missing)} of the {len(wanted)} tensors of {options.name} are missing, the first "
            f"is {missing[0]!r}: the file must hold torchvision's key names"
        )
    misshapen = [name for name in wanted if state[name].shape != wanted[name].shape]
    if misshapen:
        name = misshapen[0]
        raise CheckpointError(
            f"{options.weights}: {name} has shape {tuple(state[name].shape)}, {options.name} expects "
            f"{tuple(wanted[name].shape)}"
        )
    trunk.load_state_dict({name: state[name] for name in wanted})


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    from torchvision import models

    architecture = name.partition("-")[0]
    weights = models.get_model_weights(architecture).DEFAULT
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the pretrained weights of {architecture} could not be downloaded ({error}): "
            "give the path of a safetensors file instead"
        ) from error


def _safetensors_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error


def _resnet(architecture: str, last: str) -> Callable[[], tuple[nn.Module, int]]:
    def build() -> tuple[nn.Module, int]:
        from torchvision import models

        whole = models.get_model(architecture, weights=None)
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        trunk = nn.Sequential()
        for name in names[: names.index(last) + 1]:
            trunk.add_module(name, getattr(whole, name))
        following = {"layer3": "layer4"}.get(last)
        width = _input_width(getattr(whole, following)) if following else whole.fc.in_features
        return trunk, width

    return build


def _input_width(stage: Any) -> int:
    return int(stage[0].conv1.in_channels)


def _features(architecture: str, width: int, *, without_last_pool: bool = False) -> Callable[[], tuple[nn.Module, int]]:
    def build() -> tuple[nn.Module, int]:
        from torchvision import models

        features = models.get_model(architecture, weights=None).features
        trunk = nn.Sequential()
        trunk.add_module("features", features[:-1] if without_last_pool else features)
        return trunk, width

    return build


class Compact(nn.Sequential):
    """A small residual network for training from scratch: a grid of 1/16 of the image's side, 160 wide.

    An annotation has three parts: what is at its cell; what is around it, from a field of most of the image, so that
    the place of a thing can tell what is next to it; and where the cell is. Trained from scratch, a network without the
    last has to learn that from the padding alone, and a decoder what it has named already.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, 32, stride=2), _conv(32, 64, stride=2), Residual(64), _conv(64, 94, stride=2)
        )
        self.enter_place = Place()
        self.detail = nn.Sequential(_conv(94 + 2, 128), Residual(128))
        self.scales = _Side(
            nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(128, 87, 1)),
            nn.Sequential(_conv(128, 144, stride=2), Residual(144), nn.Conv2d(144, 48, 1)),
        )
        self.leave_place = Tents(5)


class _Side(nn.Module):
    """Networks side by side: each sees the same features, and their channels are joined."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([network(features) for network in self.networks], dim=1)


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        return F.relu(features + self.second(self.first(features)))


class Place(nn.Module):
    """Appends the vertical and horizontal place of each cell, from -1 to 1."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C + 2, h, w)."""
        batch, _, rows, columns = features.shape
        down = torch.linspace(-1, 1, rows, device=features.device, dtype=features.dtype).view(1, 1, rows, 1)
        right = torch.linspace(-1, 1, columns, device=features.device, dtype=features.dtype).view(1, 1, 1, columns)
        return torch.cat((features, down.expand(batch, 1, rows, columns), right.expand(batch, 1, rows, columns)), dim=1)


class Tents(nn.Module):
    """Appends the place of each cell as n x n numbers: how near it is to each point of a coarse grid over the image.

    They interpolate linearly between the points, so that both coordinates are weighted sums of them, and a sum of the
    places looked at so far is a map of them.
    """

    def __init__(self, points: int) -> None:
        """Points : n, along each side."""
        super().__init__()
        self.points = points

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C + n * n, h, w)."""
        batch, _, rows, columns = features.shape
        down, right = self._along(rows, features), self._along(columns, features)
        places = (down[:, None, :, None] * right[None, :, None, :]).flatten(0, 1)
        return torch.cat((features, places.expand(batch, -1, rows, columns)), dim=1)

    def _along(self, cells: int, features: Tensor) -> Tensor:
        """Weights (n, cells) of the points along one side."""
        points = torch.arange(self.points, device=features.device, dtype=features.dtype)
        cell = torch.linspace(0, self.points - 1, cells, device=features.device, dtype=features.dtype)
        return (1 - (cell - points[:, None]).abs()).clamp(min=0)


def _conv(width_in: int, width_out: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width_out),
        nn.ReLU(inplace=True),
    )


def _compact() -> tuple[nn.Module, int]:
    return Compact(), 87 + 48 + 5 * 5


_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_TRUNKS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "compact": _compact,
    **{name: _resnet(name, "layer4") for name in _RESNETS},
    **{f"{name}-layer3": _resnet(name, "layer3") for name in _RESNETS},
    "vgg16": _features("vgg16", 512, without_last_pool=True),
    "vgg19": _features("vgg19", 512, without_last_pool=True),
    "mobilenet_v2": _features("mobilenet_v2", 1280),
}
"""By name: ResNets to layer4 (1/32) or layer3 (1/16), VGGs to conv5 (1/16), MobileNetV2 (1/32), compact (1/16)."""
