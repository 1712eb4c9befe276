"""Stages at the same time: in order, bounded, stoppable, and honest about where the time goes."""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import count, islice

import pytest

from engine.pipeline import Stage, Stages, ahead, at_hand, in_order
from tests.waiting import eventually


def threads_named(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


def pool(
    function: Callable[[int], int], items: Iterable[int], *, threads: int = 2, size: int = 4, limit_s: float = 60
) -> Generator[int]:
    return in_order(
        function,
        (item for item in items),
        threads=threads,
        size=size,
        name="pool",
        limit_s=limit_s,
        too_slow=lambda item: -item,
    )


# ahead


def test_items_come_in_order_from_another_thread() -> None:
    makers = set()

    def items() -> Iterator[int]:
        for number in range(100):
            makers.add(threading.current_thread().name)
            yield number

    assert list(ahead(items(), size=3, name="maker")) == list(range(100))
    assert makers == {"maker"}


def test_only_so_many_items_wait() -> None:
    made = count()
    items = ahead((next(made) for _ in count()), size=5, name="bounded")
    assert next(items) == 0
    time.sleep(0.05)
    assert next(made) <= 1 + 5 + 1  # given out, waiting, in the hands of the thread that waits for room
    items.close()
    assert eventually(lambda: threads_named("bounded") == 0)


def test_heavy_items_wait_alone() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for weight in (6, 6, 20, 1):
            made.append(weight)
            yield weight

    heavy = ahead(items(), size=10, limit=10, weight=float, name="heavy")
    assert next(heavy) == 6
    assert eventually(lambda: made == [6, 6, 20])  # 20 is made, but has no room beside the 6 that waits
    time.sleep(0.05)
    assert made == [6, 6, 20]
    assert list(heavy) == [6, 20, 1]


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the disk is gone")

    failing = ahead(items(), size=5, name="failing")
    assert next(failing) == 1
    with pytest.raises(ValueError, match="the disk is gone"):
        next(failing)


def test_who_stops_pulling_ends_the_thread_and_closes_the_items() -> None:
    closed = threading.Event()

    def items() -> Generator[int]:
        try:
            yield from count()
        finally:
            closed.set()

    pulled = ahead(items(), size=2, name="closing")
    assert list(islice(pulled, 3)) == [0, 1, 2]
    pulled.close()
    assert closed.is_set()
    assert threads_named("closing") == 0


def test_stopping_ends_items_that_never_come() -> None:
    """As those of a pipe into which nobody writes."""
    stop, forever = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        forever.wait()

    pulled = ahead(items(), size=2, name="silent", stops=[stop])
    assert next(pulled) == 1
    threading.Timer(0.05, stop.set).start()
    assert list(pulled) == []
    forever.set()


def test_stopping_leaves_out_what_waits() -> None:
    stop = threading.Event()
    pulled = ahead(iter(range(100)), size=50, name="stopped", stops=[stop])
    assert next(pulled) == 0
    stop.set()
    assert list(pulled) == []


def test_who_stops_pulling_does_not_wait_for_an_item_that_never_comes() -> None:
    """Through a stage in between, whose thread waits for it."""
    ended, forever = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield from range(3)
        forever.wait()

    first = ahead(items(), size=1, name="first", stops=[ended])
    last = ahead(ahead(first, size=1, name="second"), size=1, name="third", ended=ended)
    assert list(islice(last, 3)) == [0, 1, 2]
    began = time.monotonic()
    last.close()
    assert time.monotonic() - began < 5
    assert threads_named("second") == threads_named("third") == 0
    forever.set()


# in_order


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.05 if number == 0 else 0.0)
        return number * number

    assert list(pool(slow_at_first, iter(range(50)))) == [number * number for number in range(50)]


def test_so_many_threads_work_at_once() -> None:
    barrier = threading.Barrier(3)

    def meet(number: int) -> int:
        barrier.wait(5)
        return number

    assert list(pool(meet, iter(range(6)), threads=3, size=6)) == list(range(6))


def test_only_so_many_items_are_begun() -> None:
    pulled = count()
    results = pool(lambda number: number, (next(pulled) for _ in count()), size=4)
    assert next(results) == 0
    assert next(pulled) == 4
    results.close()
    assert eventually(lambda: threads_named("pool") == 0)


def test_an_item_that_takes_too_long_is_given_up_and_the_others_go_on() -> None:
    hang = threading.Event()

    def stuck_at_two(number: int) -> int:
        if number == 2:
            hang.wait()
        return number

    began = time.monotonic()
    results = list(pool(stuck_at_two, iter(range(1, 8)), threads=1, limit_s=0.2))
    assert results == [1, -2, 3, 4, 5, 6, 7]
    assert time.monotonic() - began < 5
    assert threads_named("pool") >= 1
    hang.set()
    assert eventually(lambda: threads_named("pool") == 0)


def test_the_time_of_an_item_begins_with_its_work_not_with_its_waiting() -> None:
    def work(number: int) -> int:
        time.sleep(0.1)
        return number

    assert list(pool(work, iter(range(8)), threads=1, size=8, limit_s=0.7)) == list(range(8))


def test_an_error_of_the_function_comes_in_its_items_turn() -> None:
    def fail_at_three(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    results = pool(fail_at_three, iter(range(9)))
    assert list(islice(results, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert eventually(lambda: threads_named("pool") == 0)


def test_an_error_of_the_items_comes_out() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("no such folder")

    with pytest.raises(OSError, match="no such folder"):
        list(pool(lambda number: number, items()))


# Stages


def test_the_stage_whose_threads_rest_least_is_the_bottleneck() -> None:
    stages = Stages()
    stages.expect("read", 2)
    stages.expect("search")
    for name in ("read", "search"):
        with stages.working(name):
            time.sleep(0.02)
    assert stages.by_name["read"].busy_s >= 0.02
    assert stages.by_name["search"].calls == 1
    stages.by_name["read"].busy_s, stages.by_name["search"].busy_s = 0.02, 0.019
    shares = stages.shares()
    assert 0 < shares["read"] < shares["search"] <= 1
    assert stages.bottleneck == "search"


def test_pulling_counts_as_the_work_of_who_makes() -> None:
    stages = Stages()
    stages.expect("scan")

    def items() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.01)
            yield number

    for _ in stages.pulled("scan", items()):
        time.sleep(0.3)
    assert 0.03 <= stages.by_name["scan"].busy_s < 0.9


def test_what_is_not_there_yet_is_not_waited_for() -> None:
    more, waits = threading.Event(), False

    def items() -> Generator[str]:
        yield "first"
        more.wait()
        yield "second"

    with closing(at_hand(items(), size=1, name="items", stage=Stage(1), waits=lambda: waits)) as found:
        assert next(item for item in found if item is not None) == "first"
        assert [next(found), next(found)] == [None, None]
        more.set()
        waits = True
        assert list(found) == ["second"]
