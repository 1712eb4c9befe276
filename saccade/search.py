"""Beam search above the step graph: one loop for training-time evaluation, export checks, every backend and benchmark.

The rule itself (top-k, slots, gather of the surviving states) runs inside the step graph. What is left here sees only
(B, K) arrays: when to stop, which hypotheses there are, which one is best.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from saccade.decoding import Decoding, SharedDecoding
from saccade.errors import ConfigError
from saccade.glimpses import DecodeMode, Glimpses
from saccade.hypotheses import Ended, Hypothesis, Trace
from saccade.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How captions are searched.

    beam : live rows per image (K); 1 is greedy search
    max_length : steps at most; a caption that has not ended by then is `truncated`
    min_length : words at least; `<end>` is banned before
    length_penalty : a >= 0; hypotheses are ranked by score / length^a, the length counting `<end>`
    n_best : hypotheses to return per image, at most `beam`
    suppress_unk : ban `<unk>`
    decode_mode, seed : how hard attention takes its context (`saccade.glimpses`); others know "expected" alone
    """

    beam: int = 3
    max_length: int = 40
    min_length: int = 0
    length_penalty: float = 0.0
    n_best: int = 1
    suppress_unk: bool = False
    decode_mode: DecodeMode = "expected"
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.beam < 1:
            problems.append(f"beam must be at least 1, got {self.beam}")
        if not 1 <= self.n_best <= max(self.beam, 1):
            problems.append(f"n_best must be between 1 and beam ({self.beam}), got {self.n_best}")
        if self.max_length < 1:
            problems.append(f"max_length must be at least 1, got {self.max_length}")
        if not 0 <= self.min_length < max(self.max_length, 1):
            problems.append(f"min_length must be between 0 and max_length - 1, got {self.min_length}")
        if not 0 <= self.length_penalty < float("inf"):
            problems.append(f"length_penalty must be 0 or more, got {self.length_penalty}")
        if self.decode_mode not in get_args(DecodeMode):
            problems.append(f"decode_mode must be {' or '.join(get_args(DecodeMode))}, got {self.decode_mode!r}")
        if not 0 <= self.seed < 2**64:
            problems.append(f"seed must be between 0 and 2^64 - 1, got {self.seed}")
        if problems:
            raise ConfigError("invalid search options: " + "; ".join(problems))


def glimpses_of(pixels: NDArray[np.uint8], options: SearchOptions, attention: str, *, places: int) -> Glimpses | None:
    """What hard attention needs for images uint8 (B, S, S, 3) and L = `places`; None for another kind of attention.

    Raises ConfigError where that kind does not know the decode mode asked for.
    """
    if attention == "hard":
        return Glimpses(options.decode_mode, options.seed, pixels, beam=options.beam, places=places)
    if options.decode_mode != "expected":
        raise ConfigError(
            f'decode mode "{options.decode_mode}" is for hard attention; this model has "{attention}" attention'
        )
    return None


def search(decoding: Decoding, vocabulary: Vocabulary, options: SearchOptions) -> list[list[Hypothesis]]:
    """Captions of a batch of images: up to `n_best` hypotheses each, best first, always at least one.

    Finished hypotheses come before truncated ones; equal scores go to the earlier step, then to the lower rank.
    Raises BackendError where the step graph yields NaN.
    """
    searching = ContinuousSearch(vocabulary, options)
    searching.add(decoding)
    while not (done := searching.run()):
        pass
    return done[0]


class ContinuousSearch:
    """Batch after batch in the places of the first one: an image whose caption is known makes room for one that waits.

    Each batch gets what `search` finds for it alone. Images of several batches stand side by side where decodings can
    share (`SharedDecoding`) and `<end>` is never banned; elsewhere one batch is searched to its end before the next.
    """

    def __init__(self, vocabulary: Vocabulary, options: SearchOptions) -> None:
        self._options = options
        self._bias = np.zeros(len(vocabulary), np.float32)
        if options.suppress_unk:
            self._bias[vocabulary.unk] = -np.inf
        self._early_bias = self._bias.copy()
        self._early_bias[vocabulary.end] = -np.inf
        self._end = vocabulary.end
        self._batches: deque[_Batch] = deque()
        self._places: _Places | None = None

    def add(self, decoding: Decoding, *, images: int | None = None) -> None:
        """Let a batch wait. Only its first `images` images are searched, where others fill it up."""
        self._batches.append(_Batch(decoding, decoding.images if images is None else min(images, decoding.images)))

    @property
    def is_busy(self) -> bool:
        """Whether there is an image whose caption is not known."""
        return any(not batch.is_done for batch in self._batches)

    @property
    def is_hungry(self) -> bool:
        """Whether there is a place for an image of another batch, and none waits."""
        if any(batch.waits for batch in self._batches):
            return False
        if self._places is None or not self._places.busy.any():
            return True
        return not self._places.busy.all() and self._can_mix(self._places.decoding)

    def run(self) -> list[list[list[Hypothesis]]]:
        """Go on until a batch is done or more images could be searched, for at least a step if there is any to take.

        Returns the hypotheses of batches that are done, in the order in which they came.
        """
        while self.is_busy:
            self._place()
            self._advance()
            if self._batches[0].is_done or self.is_hungry:
                break
        done = []
        while self._batches and self._batches[0].is_done:
            done.append(self._batches.popleft().hypotheses)
        return done

    def _place(self) -> None:
        """Give images that wait the places there are, first come, first served."""
        for batch in self._batches:
            if batch.waits and (self._places is None or not self._places.busy.any()):
                self._places = _Places(batch, self._trace(batch.waiting.images))
            elif batch.waits and self._places is not None and self._mix(self._places.decoding, batch.waiting):
                self._places.take(batch)
            if batch.waits:
                return

    def _mix(self, one: Decoding, other: Decoding) -> bool:
        return self._can_mix(one) and self._can_mix(other) and one.images == other.images

    def _can_mix(self, decoding: Decoding) -> bool:
        # A minimum length is counted for all places at once.
        return self._options.min_length == 0 and isinstance(decoding, SharedDecoding)

    def _trace(self, images: int) -> Trace:
        options = self._options
        return Trace(
            images,
            self._end,
            max_length=options.max_length,
            n_best=options.n_best,
            length_penalty=options.length_penalty,
        )

    def _advance(self) -> None:
        if self._places is not None:
            is_early = self._places.trace.steps < self._options.min_length
            self._places.advance(self._early_bias if is_early else self._bias)


class _Batch:
    """Images that came together.

    hypotheses : of each, once they are known
    placed : how many have, or had, a place: the first ones
    missing : how many captions are not known
    """

    def __init__(self, decoding: Decoding, images: int) -> None:
        self.hypotheses: list[list[Hypothesis]] = [[] for _ in range(images)]
        self.placed = 0
        self.missing = images
        self._decoding: Decoding | None = decoding

    @property
    def waits(self) -> bool:
        """Whether there are images without a place."""
        return self.placed < len(self.hypotheses)

    @property
    def waiting(self) -> Decoding:
        """The decoding. Asked for as long as images wait."""
        return cast("Decoding", self._decoding)

    @property
    def is_done(self) -> bool:
        return self.missing == 0

    def place(self, images: int) -> None:
        """So many more have a place; after the last one, the decoding's buffers can be used again."""
        self.placed += images
        if not self.waits:
            self._decoding = None


class _Places:
    """The images that are searched together, one in each place.

    busy : bool (B,), where there is one whose caption is not known
    """

    def __init__(self, batch: _Batch, trace: Trace) -> None:
        """Those of `batch` that wait get their own places."""
        self.decoding = batch.waiting
        self.trace = trace
        images = np.arange(self.decoding.images)
        self.busy = (batch.placed <= images) & (images < len(batch.hypotheses))
        self._owners = [(batch, image) for image in images.tolist()]
        self._first = np.zeros(len(images), np.int64)
        self._ended: list[tuple[_Batch, int, Ended]] = []
        batch.place(len(batch.hypotheses) - batch.placed)

    def take(self, batch: _Batch) -> None:
        """Place as many images of another batch as there is room for. Both decodings can share."""
        places = np.flatnonzero(~self.busy)[: len(batch.hypotheses) - batch.placed]
        if not len(places):
            return
        images = batch.placed + np.arange(len(places))
        cast("SharedDecoding", self.decoding).take(places, cast("SharedDecoding", batch.waiting), images)
        self.trace.begin(places)
        self._first[places] = self.trace.steps
        self.busy[places] = True
        for place, image in zip(places.tolist(), images.tolist(), strict=True):
            self._owners[place] = batch, image
        batch.place(len(places))

    def advance(self, bias: NDArray[np.float32]) -> None:
        """Take a step, and see which captions are known by it."""
        self.trace.add(self.decoding.advance(bias), self._first)
        known = np.flatnonzero(self.busy & self.trace.is_known(self._first)).tolist()
        for place in known:
            batch, image = self._owners[place]
            batch.missing -= 1
            ended = Ended(place, int(self._first[place]), self.trace.steps - 1, self.trace.live[place])
            self._ended.append((batch, image, ended))
        self.busy[known] = False
        if known and (not self.busy.any() or any(self._owners[place][0].is_done for place in known)):
            self._tell()

    def _tell(self) -> None:
        """Give batches their hypotheses, of many images at once, and forget the steps that told of them."""
        batches, images, ended = zip(*self._ended, strict=True)
        for batch, image, found in zip(batches, images, self.trace.hypotheses(ended), strict=True):
            batch.hypotheses[image] = found
        self._ended.clear()
        self.trace.forget(int(self._first[self.busy].min(initial=self.trace.steps)))
