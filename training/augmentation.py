"""Random variants of training images, for an encoder that is trained along."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationOptions:
    """How far an image may be changed before its captions are no longer true.

    least_area : share of the image that a crop keeps at least, scaled to the whole size again; 1 leaves cropping out
    brightness, contrast, saturation : factors are drawn from 1 - x to 1 + x; 0 leaves each out. There is no change of
        hue, as captions name colours
    flip : mirror every other image. Captions say "left" and "right", and signs can be read: leave it off unless the
        captions of the data set do not
    """

    least_area: float = 0.8
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    flip: bool = False

    def __post_init__(self) -> None:
        factors = {name: getattr(self, name) for name in ("brightness", "contrast", "saturation")}
        problems = [f"{name} must be in [0, 1), got {value}" for name, value in factors.items() if not 0 <= value < 1]
        if not 0 < self.least_area <= 1:
            problems.append(f"least_area must be in (0, 1], got {self.least_area}")
        if problems:
            raise ConfigError("invalid augmentation: " + "; ".join(problems))


class Augmentation:
    """Changes every image of a batch in its own way.

    All that is random is drawn from torch's global generator of the CPU, on whatever device the images are: with the
    state of that generator, which checkpoints hold, an epoch is repeated bit by bit.
    """

    def __init__(self, options: AugmentationOptions, *, size: int) -> None:
        """`size` : side S of the images, before and after."""
        from torchvision.transforms import v2

        jitter = v2.ColorJitter(options.brightness, options.contrast, options.saturation)
        crop = v2.RandomResizedCrop(size, scale=(options.least_area, 1.0))
        self._transform = v2.Compose([crop, jitter, v2.RandomHorizontalFlip(0.5 if options.flip else 0.0)])

    def __call__(self, pixels: Tensor) -> Tensor:
        """Variants of images uint8 (B, S, S, 3), of the same shape and type."""
        images = [self._transform(image) for image in pixels.permute(0, 3, 1, 2)]  # one at a time: each is drawn anew
        return torch.stack(images).permute(0, 2, 3, 1)
