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


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderOptions:
    """Which trunk, with which weights.

    name : a key of the registry, see `encoder_names`
    weights : "default" (torchvision's pretrained ones, downloaded by torchvision), "none" (random) or a path to a
        safetensors file with torchvision's key names
    grid : side of the annotation grid, made by adaptive average pooling; 0 keeps the trunk's own
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
    """A trunk and the pooling behind it: normalised (B, 3, S, S) to annotations (B, L, D), rows of the grid first."""

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
        """Annotations (B, L, D) of normalised images (B, 3, S, S)."""
        features: Tensor = self.trunk(images)
        values = features.flatten(2).transpose(1, 2)
        if not self.options.grid:
            return values
        rows, columns = features.shape[2:]
        return pooling_weights(rows, columns, self.options.grid, device=values.device).to(values.dtype) @ values

    def grid(self, size: int) -> tuple[int, int]:
        """Rows and columns of the grid for images of `size` pixels a side."""
        if self.options.grid:
            return self.options.grid, self.options.grid
        weights = next(self.trunk.parameters())
        was_training = self.trunk.training
        with torch.inference_mode():
            rows, columns = self.trunk.eval()(weights.new_zeros(1, 3, size, size)).shape[-2:]
        self.trunk.train(was_training)
        return rows, columns


def pooling_weights(rows: int, columns: int, grid: int, *, device: torch.device) -> Tensor:
    """Adaptive average pooling as a linear map, float32 (grid * grid, rows * columns).

    One matrix product is what runtimes compute best: exported, PyTorch's own becomes gathers of all channels. It is
    made where it is needed: nothing may come from the host while CUDA graphs are captured.
    """

    def along(size: int) -> Tensor:
        cells = torch.arange(grid, device=device)[:, None]
        places = torch.arange(size, device=device)
        inside = (places >= cells * size // grid) & (places * grid < (cells + 1) * size)
        return inside / inside.sum(dim=1, keepdim=True)

    return torch.kron(along(rows), along(columns))


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
