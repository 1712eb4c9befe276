"""Threads share a budget: together they never hold more, and nobody waits without need."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from saccade.memory import Budget


@contextmanager
def held_by_another_thread(budget: Budget, part: int) -> Iterator[None]:
    holds, release = threading.Event(), threading.Event()

    def hold() -> None:
        with budget.lend(part):
            holds.set()
            release.wait(30)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(hold)
        try:
            assert holds.wait(30)
            yield
        finally:
            release.set()
        done.result(30)


def waits(budget: Budget, part: int) -> bool:
    """Whether a thread that asks for a part is still without it after a while; in the end it gets it."""
    got = threading.Event()

    def take() -> None:
        with budget.lend(part):
            got.set()

    threading.Thread(target=take, daemon=True).start()  # where it never gets it, the tests go on
    return not got.wait(0.1)


def test_who_asks_for_more_than_is_left_waits() -> None:
    budget = Budget(10)
    with held_by_another_thread(budget, 6):
        assert [waits(budget, part) for part in (4, 5)] == [False, True]
    assert not waits(budget, 5)


def test_more_than_everything_is_lent_alone() -> None:
    budget = Budget(10)
    assert not waits(budget, 11)
    with held_by_another_thread(budget, 1):
        assert waits(budget, 11)
    with held_by_another_thread(budget, 11):
        assert waits(budget, 1)


def test_a_block_that_fails_gives_its_part_back() -> None:
    budget = Budget(10)
    with pytest.raises(ZeroDivisionError), budget.lend(10):
        raise ZeroDivisionError
    with budget.lend(10):
        pass


def test_many_threads_together_never_hold_more_than_there_is() -> None:
    budget, lock, held, most = Budget(10), threading.Lock(), 0, 0

    def take(part: int) -> None:
        nonlocal held, most
        with budget.lend(part):
            with lock:
                held += part
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= part

    parts = np.random.default_rng(5).integers(1, 10, 200).tolist()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, parts, timeout=60))
    assert most == 10
    assert held == 0
