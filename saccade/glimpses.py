"""Where hard attention looks while a caption is decoded: inputs of the step graph that depend on the image alone."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DecodeMode = Literal["expected", "argmax", "sample"]
"""Context of hard attention: the expected annotation, the most likely place, or a place drawn from the alphas."""


class Glimpses:
    """`noise` and `sampled` of every step for a batch of images.

    The noise of an image follows from its pixels and the seed, so that its caption does not depend on its neighbours.
    """

    def __init__(self, mode: DecodeMode, seed: int, pixels: NDArray[np.uint8], *, beam: int, places: int) -> None:
        """Prepare the search of pixels uint8 (B, S, S, 3) with K = `beam` rows over L = `places`."""
        self._sampled = np.full(len(pixels), mode != "expected")
        self._noise = np.zeros((len(pixels), beam, places), np.float32)
        key = seed.to_bytes(8, "little")
        digests = [blake2b(image.tobytes(), digest_size=16, key=key).digest() for image in pixels]
        self._streams = [
            np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
            for digest in (digests if mode == "sample" else ())
        ]

    def step(self) -> dict[str, NDArray[np.generic]]:
        """Inputs of the next step: `noise` float32 (B, K, L) and `sampled` bool (B,)."""
        for noise, stream in zip(self._noise, self._streams, strict=False):  # no streams: no noise
            noise[:] = stream.gumbel(size=noise.shape)
        return {"noise": self._noise, "sampled": self._sampled}
