"""Augmentation: variants that keep the captions true, drawn anew for each image, and again bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saccade.errors import ConfigError
from training.augmentation import Augmentation, AugmentationOptions

NOTHING = {"least_area": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    """Smooth ramps: red grows to the right, green downwards; all images are the same."""
    ramp = torch.linspace(20, 235, size)
    image = torch.stack((ramp.expand(size, size), ramp[:, None].expand(size, size), torch.full((size, size), 90.0)), 2)
    return image.to(torch.uint8).expand(count, -1, -1, -1)


def augmented(pixels: torch.Tensor, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return Augmentation(AugmentationOptions(**NOTHING | options), size=pixels.shape[1])(pixels)


def test_what_is_left_out_changes_nothing() -> None:
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(augmented(pixels), pixels)


def test_each_image_is_changed_in_its_own_way_and_the_batch_is_not() -> None:
    pixels = images()
    before = pixels.clone()
    changed = Augmentation(AugmentationOptions(), size=32)(pixels)
    assert changed.shape == pixels.shape
    assert changed.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in [pixels[0], *changed]}) == 5
    assert torch.equal(pixels, before)


def test_the_global_generator_decides() -> None:
    """So a resumed epoch sees the images of the one that was interrupted."""
    augmentation = Augmentation(AugmentationOptions(flip=True), size=32)
    torch.manual_seed(3)
    augmentation(images())
    state = torch.get_rng_state()
    first, second = augmentation(images()), augmentation(images())
    torch.set_rng_state(state)
    assert torch.equal(Augmentation(AugmentationOptions(flip=True), size=32)(images()), first)
    assert not torch.equal(first, second)


def test_a_crop_keeps_the_area_asked_for_and_reaches_every_side() -> None:
    """The ramps tell where a crop begins and ends: its area is the product of the ranges of red and green."""
    pixels = images(200, size=64)
    red, green = (augmented(pixels, least_area=0.8)[..., channel].flatten(1).float() for channel in (0, 1))
    whole = 235 - 20
    areas = (red.amax(1) - red.amin(1)) * (green.amax(1) - green.amin(1)) / whole**2
    assert 0.76 < areas.min() < 0.84  # rounding to whole pixels costs a few hundredths
    assert areas.mean() < 0.95
    for ramp in (red, green):
        assert ramp.amin() <= 21
        assert ramp.amax() >= 234
        assert ramp.amin(1).max() > 30
        assert ramp.amax(1).min() < 225


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_factor_changes_its_own_property_within_its_range(name: str) -> None:
    """Factors are measured in the unaltered scale: brightness by the mean, contrast by the spread of grey, ..."""
    pixels = images(100).div(2, rounding_mode="floor") + 64  # nothing is clipped

    def measure(batch: torch.Tensor) -> torch.Tensor:
        values = batch.double()
        grey = values @ torch.tensor([0.2989, 0.587, 0.114], dtype=torch.double)
        return {
            "brightness": grey.mean((1, 2)),
            "contrast": grey.std((1, 2)),
            "saturation": (values - grey[..., None]).abs().mean((1, 2, 3)),
        }[name]

    factors = measure(augmented(pixels, **{name: 0.2})) / measure(pixels)
    assert 0.78 < factors.min() < 0.85
    assert 1.15 < factors.max() < 1.22


def test_images_are_mirrored_only_if_asked_for() -> None:
    pixels = images(100)
    mirrored = (augmented(pixels, flip=True) == pixels.flip(2)).all(3).all(2).all(1)
    kept = (augmented(pixels, flip=True) == pixels).all(3).all(2).all(1)
    assert (mirrored ^ kept).all()
    assert 30 < mirrored.sum() < 70
    left_is_dark = Augmentation(AugmentationOptions(), size=32)(pixels)[..., 0].float()
    assert (left_is_dark[:, :, :8].mean((1, 2)) < left_is_dark[:, :, -8:].mean((1, 2))).all()


def test_every_problem_of_the_options_is_told_at_once() -> None:
    with pytest.raises(
        ConfigError, match=r"brightness must be in \[0, 1\), got 1\.5; least_area must be in \(0, 1\], got 0"
    ):
        AugmentationOptions(brightness=1.5, least_area=0)
