"""Caption metrics: BLEU-1..4, ROUGE-L and CIDEr-D as coco-caption defines them (Chen et al. 2015, arXiv:1504.00325).

Everything takes captions that are already tokenised: `hypotheses[i]` is the caption of image i, a sequence of words,
and `references[i]` its human captions, one or more such sequences. Both sides must be tokenised by the same rule.

The unknown word of a hypothesis never matches, not even an unknown word of a reference: it is a wrong word. It counts
towards lengths, n-gram totals and norms as any other wrong word does.

An empty hypothesis scores 0 in ROUGE-L and CIDEr-D, and to BLEU it adds only the length it lacks. An empty reference
is allowed: it is a caption that nothing matches.

    scores = caption_scores(hypotheses, references)     # {"BLEU-1": 0.67, ..., "ROUGE-L": 0.48, "CIDEr-D": 0.52}
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.errors import DataError

Caption = Sequence[str]
Ngram = tuple[str, ...]

MAX_N = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0

_NEVER_MATCHES = " "  # stands for an unknown word in a hypothesis; a blank is no word of any tokenised reference


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusScore:
    """The mean of a metric and what it is the mean of.

    score : mean over the hypotheses
    per_image : float64 (N,), one value for each hypothesis, in their order
    """

    score: float
    per_image: NDArray[np.float64]


def caption_scores(
    hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]], *, unknown: str = "<unk>"
) -> dict[str, float]:
    """Return every metric by name: "BLEU-1" .. "BLEU-4", "ROUGE-L" (all in 0..1) and "CIDEr-D" (0..10).

    unknown : the word that never matches
    Raises DataError for an empty corpus, unequal numbers of images or an image without references.
    """
    scores = {f"BLEU-{n}": value for n, value in enumerate(bleu(hypotheses, references, unknown=unknown), start=1)}
    scores["ROUGE-L"] = rouge_l(hypotheses, references, unknown=unknown).score
    scores["CIDEr-D"] = cider_d(hypotheses, references, unknown=unknown).score
    return scores


def bleu(
    hypotheses: Sequence[Caption],
    references: Sequence[Sequence[Caption]],
    *,
    unknown: str = "<unk>",
    brevity_penalty: bool = True,
) -> tuple[float, float, float, float]:
    """Return corpus BLEU-1..4 (Papineni et al. 2002), each in 0..1.

    Counts are summed over the corpus before any ratio is taken; the reference length of an image is the one closest to
    the hypothesis, the shorter of two equally close. Raises DataError as `caption_scores` does.

    brevity_penalty : False leaves it out, as the tables of Xu et al. (2015) do; never lower, and flattering where
        captions are short
    """
    counts = bleu_counts(hypotheses, references, unknown=unknown).sum(axis=0)
    one, two, three, four = bleu_of(counts, brevity_penalty=brevity_penalty).tolist()
    return one, two, three, four


def bleu_counts(
    hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]], *, unknown: str = "<unk>"
) -> NDArray[np.int64]:
    """What corpus BLEU sums over images, (N, 10): n-grams of order 1 to 4 that match, those there are, both lengths.

    Raises DataError as `caption_scores` does.
    """
    return np.array([_bleu_counts_of(*image) for image in _images(hypotheses, references, unknown)])


def _bleu_counts_of(hypothesis: Ngram, references: Sequence[Ngram]) -> list[int]:
    matches, guesses = [0] * MAX_N, [0] * MAX_N
    reference_counts = [_ngram_counts(reference) for reference in references]
    for ngram, count in _ngram_counts(hypothesis).items():
        # Modified precision (section 2.1): a word is right as often as the most generous reference has it.
        matches[len(ngram) - 1] += min(count, max(counts.get(ngram, 0) for counts in reference_counts))
        guesses[len(ngram) - 1] += count
    length = len(hypothesis)
    return [*matches, *guesses, length, min(map(len, references), key=lambda other: (abs(other - length), other))]


def bleu_of(counts: NDArray[np.int64], *, brevity_penalty: bool = True) -> NDArray[np.float64]:
    """BLEU-1..4 (..., 4) of sums of `bleu_counts` (..., 10)."""
    # coco-caption keeps its ratios finite with these two numbers. They are part of the published scores: a
    # perfect corpus stays just below 1, and one with no matching n-gram just above 0.
    tiny, small = 1e-15, 1e-9
    ratio = (counts[..., -2] + tiny) / (counts[..., -1] + small)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio)) if brevity_penalty else np.ones_like(ratio)  # section 2.3
    precisions = (counts[..., :MAX_N] + tiny) / (counts[..., MAX_N : 2 * MAX_N] + small)
    scores: NDArray[np.float64] = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, MAX_N + 1))
    return penalty[..., None] * scores


def rouge_l(
    hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]], *, unknown: str = "<unk>"
) -> CorpusScore:
    """Return ROUGE-L (Lin 2004, Eqs. 2-4), each value in 0..1.

    As in coco-caption, precision and recall are each the best over the references, not necessarily of the same one, and
    beta is 1.2. Raises DataError as `caption_scores` does.
    """
    return _corpus_score([_rouge_l(hypothesis, refs) for hypothesis, refs in _images(hypotheses, references, unknown)])


def cider_d(
    hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]], *, unknown: str = "<unk>"
) -> CorpusScore:
    """Return CIDEr-D with the document frequencies of these references; see `CiderD`, which can be kept and reused."""
    return CiderD(references, unknown=unknown).score(hypotheses)


class CiderD:
    """CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726) against fixed references, which are counted once.

    A document is the set of references of one image. With a single image every word is in every document, so every
    score is 0. Raises DataError for an empty corpus or an image without references.
    """

    def __init__(self, references: Sequence[Sequence[Caption]], *, unknown: str = "<unk>") -> None:
        _check_references(references)
        counts = [[_ngram_counts(tuple(reference)) for reference in refs] for refs in references]
        document_frequency = Counter(ngram for image_counts in counts for ngram in set().union(*image_counts))
        self._unknown = unknown
        self._log_documents = math.log(len(references))
        self._idf = {ngram: self._log_documents - math.log(df) for ngram, df in document_frequency.items()}
        same: dict[_Found, _Found] = {}
        self._images = [self._image(image_counts, same) for image_counts in counts]

    def score(self, hypotheses: Sequence[Caption], *, images: Sequence[int] | None = None) -> CorpusScore:
        """Score captions, each against the references of its image; values are in 0..10.

        images : for each hypothesis the position of its image in the references; an image may be absent or repeated
            (several samples of one batch). Without it, hypothesis i belongs to image i and all must be there.
        Raises DataError if there is no hypothesis, or not one for each image.
        """
        images = range(len(self._images)) if images is None else images
        _check_hypotheses(hypotheses, len(images))
        return _corpus_score(
            [
                self._cider_d(_known(hypothesis, self._unknown), self._images[image])
                for hypothesis, image in zip(hypotheses, images, strict=True)
            ]
        )

    def _cider_d(self, hypothesis: Ngram, image: "_References") -> float:
        """Return the mean over the references of the clipped cosine, itself the mean over n, damped by the lengths."""
        counts = _ngram_counts(hypothesis)
        norms, length = self._norms(counts)
        products = [[0.0] * MAX_N for _ in image.norms]
        for ngram, count in counts.items():
            for reference, reference_count in image.where.get(ngram, ()):
                products[reference][len(ngram) - 1] += (
                    min(count, reference_count) * reference_count * self._idf[ngram] ** 2
                )
        similarity = 0.0
        for product, reference_norms, reference_length in zip(products, image.norms, image.lengths, strict=True):
            cosines = [p / (a * b) for p, a, b in zip(product, norms, reference_norms, strict=True) if a * b]
            damping = math.exp(-((length - reference_length) ** 2) / (2 * CIDER_SIGMA**2))
            similarity += sum(cosines) / MAX_N * damping
        return 10 * similarity / len(image.norms)

    def _image(self, references: Sequence[Counter[Ngram]], same: "dict[_Found, _Found]") -> "_References":
        """Index the references of an image; `same` keeps one of equal tuples, of which there are few."""
        where: dict[Ngram, _Found] = {}
        for index, counts in enumerate(references):
            for ngram, count in counts.items():
                found = (*where.get(ngram, ()), (index, count))
                where[ngram] = same.setdefault(found, found)
        norms, lengths = zip(*map(self._norms, references), strict=True)
        return _References(where, norms, lengths)

    def _norms(self, counts: Counter[Ngram]) -> tuple[list[float], int]:
        """Return the TF-IDF norm of each order n = 1..4 of a caption with these n-grams, and its number of words."""
        squares, length = [0.0] * MAX_N, 0
        for ngram, count in counts.items():
            # Eq. 1 with coco-caption's plain counts for term frequencies: the cosine is the same, the clipping is not.
            squares[len(ngram) - 1] += (count * self._idf.get(ngram, self._log_documents)) ** 2
            length += count if len(ngram) == 1 else 0
        return [math.sqrt(square) for square in squares], length


_Found = tuple[tuple[int, int], ...]
"""Which references of an image have an n-gram, and how often."""


class _References(NamedTuple):
    """An image's references as CIDEr sees them: where each n-gram is found; norms and length of each reference."""

    where: dict[Ngram, _Found]
    norms: tuple[list[float], ...]
    lengths: tuple[int, ...]


def _ngram_counts(caption: Ngram) -> Counter[Ngram]:
    """Count the n-grams of orders 1..4 together; the length of a key is its order."""
    return Counter(caption[i : i + n] for n in range(1, MAX_N + 1) for i in range(len(caption) - n + 1))


def _rouge_l(hypothesis: Ngram, references: Sequence[Caption]) -> float:
    common = [_common_subsequence_length(hypothesis, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True) if reference)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _common_subsequence_length(a: Caption, b: Caption) -> int:
    """Return the length of the longest common subsequence, by Hyyrö's bit-parallel form of the usual table (2004).

    One integer holds a row of the table, so a caption of 20 words takes 20 additions instead of 400 comparisons.
    """
    positions: dict[str, int] = {}
    for i, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    for word in b:
        hits = row & positions.get(word, 0)
        row = (row + hits | row - hits) & full
    return len(a) - row.bit_count()


def _known(hypothesis: Caption, unknown: str) -> Ngram:
    return tuple(_NEVER_MATCHES if word == unknown else word for word in hypothesis)


def _images(
    hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]], unknown: str
) -> Iterator[tuple[Ngram, list[Ngram]]]:
    check_corpus(hypotheses, references)
    for hypothesis, image_references in zip(hypotheses, references, strict=True):
        yield _known(hypothesis, unknown), [tuple(reference) for reference in image_references]


def _corpus_score(values: list[float]) -> CorpusScore:
    per_image = np.array(values, dtype=np.float64)
    return CorpusScore(score=float(per_image.mean()), per_image=per_image)


def check_corpus(hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> None:
    """Raise DataError for an empty corpus, unequal numbers of images, an image without references or plain text."""
    _check_references(references)
    _check_hypotheses(hypotheses, len(references))


def _check_hypotheses(hypotheses: Sequence[Caption], images: int) -> None:
    if len(hypotheses) != images:
        raise DataError(f"{len(hypotheses)} hypotheses for {images} images: give exactly one caption for each image")
    if not images:
        raise DataError("there is no hypothesis to score: give at least one")
    _check_tokenised(hypotheses, "hypothesis")


def _check_references(references: Sequence[Sequence[Caption]]) -> None:
    if not references:
        raise DataError("the corpus is empty: scores need at least one image with references")
    for image, image_references in enumerate(references):
        if not image_references:
            raise DataError(f"image {image} has no references: leave it out or give it at least one caption")
        _check_tokenised(image_references, f"image {image}, reference")


def _check_tokenised(captions: Sequence[Caption], what: str) -> None:
    # A string is a sequence of strings, so untokenised text would be scored letter by letter without complaint.
    for i, caption in enumerate(captions):
        if isinstance(caption, str):
            raise DataError(f"{what} {i} is the string {caption[:40]!r}, expected a sequence of words: tokenise it")
