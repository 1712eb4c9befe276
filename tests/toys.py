"""Toy captioners small enough to search exhaustively, and an independent NumPy version of the step graph."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from saccade.decoding import Arrays
from saccade.vocabulary import END, PAD, START, UNK, Vocabulary

Table = NDArray[np.float32]


def toy_vocabulary(words: int) -> Vocabulary:
    """`words` >= 4 words: the special ones, then "a", "b", ..."""
    return Vocabulary((PAD, START, END, UNK, *"abcdefghijklmnop"[: words - 4]))


def random_tables(seed: int, images: int, depth: int, words: int) -> Table:
    """Log-probs (images, depth, V, V) of a next word, given the step and the word before it."""
    logits = np.random.default_rng(seed).normal(size=(images, depth, words, words)) * 2
    log_probs: Table = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    return log_probs


class TableStep:
    """A step function over tables, written as the rule reads: image by image, row by row, a sort.

    `hidden` (B, K, 1) counts the steps, so that parents and states can be seen to stay together.
    """

    def __init__(self, tables: Table, vocabulary: Vocabulary) -> None:
        self._tables = tables
        self._end = vocabulary.end
        self.calls = 0

    def encoded(self) -> dict[str, NDArray[np.float32]]:
        images = len(self._tables)
        zeros = np.zeros((images, 1), np.float32)
        # annotations carry the image's number, as real ones carry the image
        numbers = np.arange(images, dtype=np.float32).reshape(-1, 1, 1)
        return {"annotations": numbers, "keys": numbers, "hidden": zeros, "cell": zeros}

    def __call__(self, inputs: Arrays) -> Arrays:
        self.calls += 1
        images, rows = inputs["tokens"].shape
        out = {
            "next_tokens": np.full((images, rows), self._end),
            "parents": np.zeros((images, rows), np.int64),
            "next_scores": np.full((images, rows), -np.inf, np.float32),
            "next_slots": inputs["slots"].copy(),
            "next_hidden": np.zeros((images, rows, 1), np.float32),
            "next_cell": np.zeros((images, rows, 1), np.float32),
            "alphas": np.zeros((images, rows, 4), np.float32),
        }
        for image in range(images):
            table = self._tables[int(inputs["annotations"][image, 0, 0])]
            candidates = []
            for row in range(rows):
                token, score = int(inputs["tokens"][image, row]), inputs["scores"][image, row]
                step = int(inputs["hidden"][image, row, 0])
                out["alphas"][image, row, (token + step) % 4] = 1
                if token == self._end or np.isneginf(score):
                    continue
                for word, log_prob in enumerate(table[min(step, len(table) - 1), token] + inputs["word_bias"]):
                    candidates.append((np.float32(score) + np.float32(log_prob), row, word))
            candidates.sort(key=lambda candidate: (-candidate[0], candidate[1], candidate[2]))
            for rank, (score, row, word) in enumerate(candidates[:rows]):
                if rank >= inputs["slots"][image] or np.isneginf(score):
                    break
                out["next_tokens"][image, rank] = word
                out["parents"][image, rank] = row
                out["next_scores"][image, rank] = score
                out["next_hidden"][image, rank] = inputs["hidden"][image, row] + 1
                out["next_slots"][image] -= word == self._end
        return out


def every_caption(
    table: Table, vocabulary: Vocabulary, max_length: int
) -> Iterator[tuple[tuple[int, ...], np.float32]]:
    """Every finished caption of one image with its total log-prob, by enumeration."""
    words = [word for word in range(len(vocabulary)) if word != vocabulary.end]
    for length in range(max_length):
        for caption in product(words, repeat=length):
            total, before = np.float32(0), vocabulary.start
            for step, word in enumerate((*caption, vocabulary.end)):
                total += table[min(step, len(table) - 1), before, word]
                before = word
            yield caption, total
