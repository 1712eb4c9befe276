"""Names beyond memory: each is met once, and shards and samples share the images out."""

import os
import threading
from contextlib import suppress
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.names import Names, Selection
from saccade.errors import ConfigError, OutputError

PATHS = [f"photos/{number:05d}.jpg" for number in range(20_000)]


@given(done=st.sets(st.text()), met=st.lists(st.text()))
def test_a_name_is_new_or_done_once_and_then_again(done: set[str], met: list[str]) -> None:
    seen: set[str] = set()
    with Names(done) as names:
        for name in met:
            assert names.meet(name) == ("again" if name in seen else "done" if name in done else "new")
            seen.add(name)


def test_names_that_are_not_utf8_are_names_like_others() -> None:
    odd = os.fsdecode(b"caf\xe9.jpg")
    with Names([odd]) as names:
        assert (names.meet(odd), names.meet("caf\u00e9.jpg")) == ("done", "new")


def test_shards_share_all_images_about_equally() -> None:
    shards = [[path for path in PATHS if Selection(shard=shard, shards=4).has(path)] for shard in range(4)]
    assert sorted(path for shard in shards for path in shard) == PATHS
    assert [4700 < len(shard) < 5300 for shard in shards] == [True] * 4


def test_a_larger_sample_holds_the_smaller_one() -> None:
    small, large = ({path for path in PATHS if Selection(sample=share).has(path)} for share in (0.1, 0.3))
    assert small < large
    assert 1850 < len(small) < 2150
    assert 5800 < len(large) < 6200


def test_samples_are_spread_over_the_shards() -> None:
    sample = [path for path in PATHS if Selection(sample=0.1).has(path)]
    first = [path for path in sample if Selection(shard=0, shards=2).has(path)]
    assert 0.45 < len(first) / len(sample) < 0.55


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"shards": 0}, "at least 1, got 0"),
        ({"shard": 4, "shards": 4}, "between 0 and 3, got 4"),
        ({"sample": 0.0}, "above 0"),
        ({"limit": -1}, "0 or more, got -1"),
    ],
)
def test_impossible_selections_are_refused(values: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Selection(**values)  # type: ignore[arg-type]


def test_names_that_are_closed_are_met_no_more() -> None:
    """By a thread that is still looking, for one: SQLite would crash."""
    with Names() as names:
        names.meet("a")
    with pytest.raises(OutputError, match="closed"):
        names.meet("b")


def test_closing_beside_a_thread_that_meets_names_is_safe() -> None:
    def meet_all(names: Names) -> None:
        with suppress(OutputError):
            for number in count():
                names.meet(str(number))

    for _ in range(50):
        with Names(PATHS[:100]) as names:
            thread = threading.Thread(target=meet_all, args=(names,))
            thread.start()
        thread.join(5)
        assert not thread.is_alive()
