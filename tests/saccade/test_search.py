"""The loop above the step graph, on a toy step written in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saccade.decoding import Arrays, HostDecoding
from saccade.errors import BackendError, ConfigError
from saccade.hypotheses import Hypothesis
from saccade.search import ContinuousSearch, SearchOptions, search
from tests.toys import TableStep, every_caption, random_tables, toy_vocabulary


def run(step: TableStep, options: SearchOptions, words: int, *, with_alphas: bool = False) -> list[list[Hypothesis]]:
    vocabulary = toy_vocabulary(words)
    decoding = HostDecoding(step, step.encoded(), beam=options.beam, start=vocabulary.start, with_alphas=with_alphas)
    return search(decoding, vocabulary, options)


def table_of(words: int, depth: int, probabilities: dict[tuple[int, int], dict[int, float]]) -> TableStep:
    """(step, previous word) to {word: probability}; everything else is nearly impossible."""
    table = np.full((1, depth, words, words), -20.0, np.float32)
    for (step, before), following in probabilities.items():
        for word, probability in following.items():
            table[0, step, before, word] = np.log(np.float32(probability))
    return TableStep(table, toy_vocabulary(words))


START, END, A, B, C = 1, 2, 4, 5, 6


def test_a_beam_of_two_finds_the_caption_that_greedy_search_misses() -> None:
    """By hand: greedy takes a (0.6) then <end> (0.3): 0.18; b (0.4) then <end> (0.9) is 0.36."""
    step = table_of(6, 2, {(0, START): {A: 0.6, B: 0.4}, (1, A): {END: 0.3}, (1, B): {END: 0.9}})
    greedy = run(step, SearchOptions(beam=1, max_length=2), 6)[0][0]
    wide = run(step, SearchOptions(beam=2, max_length=2), 6)[0][0]
    assert (greedy.tokens, wide.tokens) == ((A,), (B,))
    assert np.exp(greedy.log_prob) == pytest.approx(0.18)
    assert np.exp(wide.log_prob) == pytest.approx(0.36)


def test_a_finished_hypothesis_takes_its_slot_with_it() -> None:
    """With two slots, <end> at once takes one; of the two live candidates that follow only the best may go on."""
    step = table_of(7, 3, {(0, START): {END: 0.5, A: 0.3, B: 0.2}, (1, A): {B: 0.6, C: 0.4}, (2, B): {END: 1.0}})
    found = run(step, SearchOptions(beam=2, max_length=3, n_best=2), 7)[0]
    assert [hypothesis.tokens for hypothesis in found] == [(), (A, B)]
    assert not any(hypothesis.truncated for hypothesis in found)


def test_the_length_penalty_prefers_the_longer_caption() -> None:
    """log 0.3 / 1 against log 0.2 / 3: the second is better per word, the first in total."""
    step = table_of(6, 3, {(0, START): {END: 0.3, A: 0.2}, (1, A): {B: 1.0}, (2, B): {END: 1.0}})
    assert run(step, SearchOptions(beam=2, max_length=3), 6)[0][0].tokens == ()
    best = run(step, SearchOptions(beam=2, max_length=3, length_penalty=1.0), 6)[0][0]
    assert best.tokens == (A, B)
    assert best.score == pytest.approx(np.log(0.2) / 3, rel=1e-5)
    assert best.log_prob == pytest.approx(np.log(0.2), rel=1e-5)


def test_what_never_ends_gives_a_truncated_caption() -> None:
    step = table_of(6, 1, {(0, START): {A: 1.0}, (0, A): {B: 1.0}, (0, B): {A: 1.0}})
    for beam in (1, 3):
        best = run(step, SearchOptions(beam=beam, max_length=5), 6)[0][0]
        assert best.truncated
        assert best.tokens == (A, B, A, B, A)


def test_a_finished_caption_comes_before_a_likelier_truncated_one() -> None:
    step = table_of(6, 2, {(0, START): {A: 0.9, END: 0.05}, (1, A): {B: 0.9, END: 0.001}})
    best, other = run(step, SearchOptions(beam=2, max_length=2, n_best=2), 6)[0]
    assert (best.tokens, best.truncated) == ((), False)
    assert (other.tokens, other.truncated) == ((A, B), True)
    assert other.score > best.score


def test_unk_is_written_unless_suppressed() -> None:
    unk = 3
    step = table_of(6, 2, {(0, START): {unk: 0.8, A: 0.2}, (1, unk): {END: 1.0}, (1, A): {END: 1.0}})
    assert run(step, SearchOptions(beam=1, max_length=2), 6)[0][0].tokens == (unk,)
    assert run(step, SearchOptions(beam=1, max_length=2, suppress_unk=True), 6)[0][0].tokens == (A,)


def test_min_length_bans_the_end_before() -> None:
    step = table_of(6, 3, {(0, START): {END: 0.9, A: 0.1}, (1, A): {END: 0.9, B: 0.1}, (2, B): {END: 1.0}})
    for length, tokens in ((0, ()), (1, (A,)), (2, (A, B))):
        assert run(step, SearchOptions(beam=1, max_length=3, min_length=length), 6)[0][0].tokens == tokens


def test_alphas_follow_the_path_of_the_hypothesis_through_its_parents() -> None:
    """The toy row with previous word w at step t looks at place (w + t) mod 4; beam 2 makes the parent row 1."""
    step = table_of(6, 2, {(0, START): {A: 0.6, B: 0.4}, (1, A): {END: 0.3}, (1, B): {END: 0.9}})
    best = run(step, SearchOptions(beam=2, max_length=2), 6, with_alphas=True)[0][0]
    assert best.tokens == (B,)
    assert best.alphas is not None
    assert best.alphas.argmax(axis=1).tolist() == [START % 4]
    long = table_of(6, 3, {(0, START): {A: 0.6, B: 0.4}, (1, A): {A: 0.3}, (1, B): {A: 0.9}, (2, A): {END: 1}})
    alphas = run(long, SearchOptions(beam=2, max_length=3), 6, with_alphas=True)[0][0].alphas
    assert alphas is not None
    assert alphas.argmax(axis=1).tolist() == [START, (B + 1) % 4]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    words=st.integers(4, 6),
    max_length=st.integers(1, 4),
    length_penalty=st.sampled_from((0.0, 0.5, 1.0, 2.0)),
)
def test_a_wide_enough_beam_equals_exhaustive_search(
    seed: int, words: int, max_length: int, length_penalty: float
) -> None:
    """With a slot for every sequence there is, beam search is enumeration."""
    vocabulary = toy_vocabulary(words)
    tables = random_tables(seed, 1, max_length, words)
    everything = sorted(
        (-float(np.float64(score) / (len(tokens) + 1) ** length_penalty), tokens)
        for tokens, score in every_caption(tables[0], vocabulary, max_length)
    )
    options = SearchOptions(beam=words**max_length, max_length=max_length, length_penalty=length_penalty)
    best = run(TableStep(tables, vocabulary), options, words)[0][0]
    assert not best.truncated
    assert best.score == pytest.approx(-everything[0][0], rel=1e-6)
    if len(everything) == 1 or everything[1][0] - everything[0][0] > 1e-5:
        assert best.tokens == everything[0][1]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    words=st.integers(4, 6),
    beam=st.integers(1, 5),
    max_length=st.integers(1, 5),
    length_penalty=st.sampled_from((0.0, 0.7, 1.0, 3.0)),
)
def test_early_exit_returns_what_the_full_search_returns(
    seed: int, words: int, beam: int, max_length: int, length_penalty: float
) -> None:
    """n_best above 1 never stops early, so its first hypothesis is the full search's."""
    vocabulary = toy_vocabulary(words)
    tables = random_tables(seed, 3, max_length, words)
    early, full = TableStep(tables, vocabulary), TableStep(tables, vocabulary)
    options = SearchOptions(beam=beam, max_length=max_length, length_penalty=length_penalty)
    found = run(early, options, words)
    if beam > 1:
        every = SearchOptions(beam=beam, max_length=max_length, length_penalty=length_penalty, n_best=beam)
        expected = run(full, every, words)
        assert [best[0] for best in found] == [best[0] for best in expected]
        assert early.calls <= full.calls


def test_early_exit_saves_steps() -> None:
    """<end> at once with 0.9 cannot be beaten by rows that hold 0.1 together."""
    step = table_of(6, 1, {(0, START): {END: 0.9, A: 0.1}, (0, A): {A: 1.0}})
    run(step, SearchOptions(beam=2, max_length=30), 6)
    assert step.calls == 1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), beam=st.integers(1, 4), n_best=st.integers(1, 4))
def test_a_caption_does_not_depend_on_the_images_beside_it(seed: int, beam: int, n_best: int) -> None:
    words, vocabulary = 6, toy_vocabulary(6)
    tables = random_tables(seed, 4, 4, words)
    options = SearchOptions(beam=beam, max_length=5, n_best=min(n_best, beam))
    together = run(TableStep(tables, vocabulary), options, words)
    alone = [run(TableStep(tables[image : image + 1], vocabulary), options, words)[0] for image in range(4)]
    assert together == alone


def test_n_best_is_sorted_and_distinct() -> None:
    tables = random_tables(7, 1, 4, 6)
    found = run(TableStep(tables, toy_vocabulary(6)), SearchOptions(beam=5, max_length=8, n_best=5), 6)[0]
    scores = [hypothesis.score for hypothesis in found if not hypothesis.truncated]
    assert scores == sorted(scores, reverse=True)
    assert len({hypothesis.tokens for hypothesis in found}) == len(found) > 1


def test_nan_scores_are_reported_instead_of_searched() -> None:
    step = TableStep(random_tables(0, 1, 1, 5), toy_vocabulary(5))

    def broken(inputs: Arrays) -> Arrays:
        return {**step(inputs), "next_scores": np.full((1, 2), np.nan, np.float32)}

    decoding = HostDecoding(broken, step.encoded(), beam=2, start=START, with_alphas=False)
    with pytest.raises(BackendError, match="NaN scores at step 1"):
        search(decoding, toy_vocabulary(5), SearchOptions(beam=2))


def test_every_wrong_option_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"beam .*n_best .*max_length .*length_penalty"):
        SearchOptions(beam=0, n_best=3, max_length=0, length_penalty=-1.0)


class Sharing(HostDecoding):
    """A `SharedDecoding` over a step function."""

    def take(self, places: NDArray[np.intp], other: Sharing, images: NDArray[np.intp]) -> None:
        for mine, others in ((self._constants, other._constants), (self._state, other._state)):
            for name, values in others.items():
                changed = mine[name].copy()
                changed[places] = values[images]
                mine[name] = changed  # type: ignore[index]


def continuous(
    step: TableStep, sizes: list[int], options: SearchOptions, words: int, *, kind: type[HostDecoding] = Sharing
) -> list[list[list[Hypothesis]]]:
    """Search images in batches of places, of which so many are taken, one batch ahead."""
    places, first = max(sizes), 0
    searching = ContinuousSearch(toy_vocabulary(words), options)
    found = []
    for size in sizes:
        numbers = np.minimum(np.arange(first, first + places), first + size - 1)  # filled up with copies of the last
        encoded = {name: values[numbers] for name, values in step.encoded().items()}
        searching.add(kind(step, encoded, beam=options.beam, start=START, with_alphas=True), images=size)
        first += size
        while not searching.is_hungry:
            found += searching.run()
    while searching.is_busy:
        found += searching.run()
    return found


def told(found: list[list[Hypothesis]]) -> list[list[tuple[object, ...]]]:
    return [[(h.tokens, h.log_prob, h.score, h.truncated, h.alphas.tolist()) for h in image] for image in found]  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    beam=st.integers(1, 3),
    n_best=st.integers(1, 3),
    max_length=st.integers(1, 6),
    penalty=st.sampled_from([0.0, 0.7]),
)
def test_images_that_take_the_places_of_others_are_captioned_as_alone(
    seed: int, sizes: list[int], beam: int, n_best: int, max_length: int, penalty: float
) -> None:
    options = SearchOptions(beam=beam, n_best=min(beam, n_best), max_length=max_length, length_penalty=penalty)
    step = TableStep(random_tables(seed, sum(sizes), 4, 6), toy_vocabulary(6))
    alone = run(step, options, 6, with_alphas=True)
    found = continuous(step, sizes, options, 6)
    assert [len(batch) for batch in found] == sizes
    assert told([image for batch in found for image in batch]) == told(alone)


def one_long_caption(images: int) -> TableStep:
    """The first image says six words, the others none."""
    table = np.full((images, 7, 6, 6), -20.0, np.float32)
    table[1:, :, :, END] = 0.0
    table[0, :6, :, A] = table[0, 6, :, END] = 0.0
    return TableStep(table, toy_vocabulary(6))


def test_short_captions_pass_by_a_long_one() -> None:
    options = SearchOptions(beam=1, max_length=10)
    step = one_long_caption(12)
    together = continuous(step, [3, 3, 3, 3], options, 6)
    assert [len(image[0].tokens) for batch in together for image in batch] == [6] + [0] * 11
    assert step.calls == 7  # the other two places have room for all others meanwhile
    step = one_long_caption(12)
    apart = continuous(step, [3, 3, 3, 3], options, 6, kind=HostDecoding)
    assert [told(batch) for batch in apart] == [told(batch) for batch in together]
    assert step.calls == 7 + 3


def test_where_words_are_banned_at_first_batches_stay_apart() -> None:
    options = SearchOptions(beam=2, max_length=5, min_length=2)
    step = TableStep(random_tables(3, 8, 4, 6), toy_vocabulary(6))
    alone = run(step, options, 6, with_alphas=True)
    found = continuous(step, [4, 4], options, 6)
    assert told([image for batch in found for image in batch]) == told(alone)
    assert all(len(image[0].tokens) >= 2 for image in alone)


def test_a_batch_is_told_of_as_soon_as_it_is_done_and_in_its_turn() -> None:
    step = one_long_caption(4)
    searching = ContinuousSearch(toy_vocabulary(6), SearchOptions(beam=1, max_length=10))
    for numbers in ([1, 2], [0, 3]):
        encoded = {name: values[numbers] for name, values in step.encoded().items()}
        searching.add(Sharing(step, encoded, beam=1, start=START, with_alphas=False))
    assert [len(batch) for batch in searching.run()] == [2]
    assert step.calls == 1
    # Hungry, it comes back after every step.
    assert [len(searching.run()) for _ in range(8)] == [0] * 6 + [1, 0]
    assert step.calls == 8
    assert not searching.is_busy
