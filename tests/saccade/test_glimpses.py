"""Where hard attention looks: noise that belongs to the image, not to its batch."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.errors import ConfigError
from saccade.glimpses import Glimpses
from saccade.search import SearchOptions, glimpses_of
from tests.bundles import patchworks


def noise(seed: int, pictures: slice, *, steps: int = 2, mode: str = "sample") -> np.ndarray:
    glimpses = Glimpses(mode, seed, patchworks(3, seed=1)[pictures], beam=2, places=4)  # type: ignore[arg-type]
    return np.stack([glimpses.step()["noise"].copy() for _ in range(steps)])


def test_the_noise_of_an_image_does_not_depend_on_its_neighbours() -> None:
    together = noise(7, slice(0, 3))
    for image in range(3):
        np.testing.assert_array_equal(noise(7, slice(image, image + 1))[:, 0], together[:, image])
    assert len(np.unique(together)) == together.size  # but images, rows and steps differ


def test_the_noise_follows_from_the_seed() -> None:
    np.testing.assert_array_equal(noise(7, slice(0, 3)), noise(7, slice(0, 3)))
    assert (noise(7, slice(0, 3)) != noise(8, slice(0, 3))).all()


def test_the_noise_is_gumbels() -> None:
    """The largest of log p + noise is drawn with probability p."""
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    drawn = (np.log(probabilities) + noise(0, slice(0, 3), steps=4000)).argmax(axis=-1).ravel()
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, probabilities, atol=4 * 0.5 / len(drawn) ** 0.5)


@pytest.mark.parametrize(("mode", "sampled"), [("expected", False), ("argmax", True)])
def test_other_modes_have_no_noise(mode: str, sampled: bool) -> None:
    glimpses = Glimpses(mode, 0, patchworks(2, seed=1), beam=2, places=4)  # type: ignore[arg-type]
    inputs = glimpses.step()
    assert not inputs["noise"].any()
    assert inputs["sampled"].tolist() == [sampled, sampled]


def test_only_hard_attention_knows_other_modes() -> None:
    pixels = patchworks(1, seed=1)
    assert glimpses_of(pixels, SearchOptions(), "soft", places=4) is None
    assert glimpses_of(pixels, SearchOptions(decode_mode="argmax"), "hard", places=4) is not None
    with pytest.raises(ConfigError, match='decode mode "argmax" is for hard attention; this model has "soft"'):
        glimpses_of(pixels, SearchOptions(decode_mode="argmax"), "soft", places=4)
