"""Stages that work at the same time, in threads of their own, with bounded queues between them.

Each stage is a generator over the one before. Whoever stops pulling stops them all: a full queue holds its stage back,
and closing the last generator ends every thread. Only work that is stuck in a system call or a decoder is left alone,
in a thread that the process does not wait for at its end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

T = TypeVar("T")
U = TypeVar("U")

_POLL_S = 0.1


@dataclass(slots=True)
class Stage:
    """What a stage did: seconds its threads worked, all together, how often, and how many results waited at most."""

    threads: int
    busy_s: float = 0.0
    calls: int = 0
    most_waiting: int = 0


@dataclass(slots=True)
class Stages:
    """Where the time goes. Safe in many threads."""

    by_name: dict[str, Stage] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, name: str, threads: int = 1) -> None:
        """Name a stage before it works, so that stages are shown in the order of the pipeline."""
        self.by_name[name] = Stage(threads)

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        """Count the time of the block as work of a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            with self._lock:
                stage = self.by_name[name]
                stage.busy_s += spent
                stage.calls += 1

    def pulled(self, name: str, items: Iterable[T]) -> Generator[T]:
        """The items; making each counts as work of a stage."""
        iterator = iter(items)
        while True:
            with self.working(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def shares(self) -> dict[str, float]:
        """For each stage, which part of the time since the beginning its threads were at work, 0 to 1."""
        wall = max(time.monotonic() - self.began, 1e-9)
        return {name: min(1.0, stage.busy_s / (stage.threads * wall)) for name, stage in self.by_name.items()}

    @property
    def bottleneck(self) -> str:
        """The stage whose threads had the least rest: making another one faster gains little."""
        shares = self.shares()
        return max(shares, key=lambda name: shares[name])


class _End:
    """What a stage's thread sends last: the reason, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Ahead(Generic[T]):
    """A queue of at most `size` items of together at most `weight` (but always one), which either side can end."""

    def __init__(self, size: int, limit: float, weight: Callable[[T], float], stage: Stage | None) -> None:
        self._size, self._limit, self._weigh, self._stage = size, limit, weight, stage
        self._items: deque[tuple[T | _End, float]] = deque()
        self._weight = 0.0
        self._changed = threading.Condition()
        self._closed = False

    def fill(self, items: Iterable[T]) -> None:
        """Put all items and the end, as long as they are taken."""
        error: BaseException | None = None
        try:
            for item in items:
                taken = self.put(item)
                del item  # the taker's, while the next one is made
                if not taken:
                    break
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it belongs to the thread that pulls
            error = raised
        finally:
            if isinstance(items, Generator):
                items.close()
        self.put(_End(error))

    def put(self, item: T | _End) -> bool:
        """Wait for room and append; False where the taker is gone."""
        weight = 0.0 if isinstance(item, _End) else self._weigh(item)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(weight))
            if not self._closed:
                self._items.append((item, weight))
                self._weight += weight
                if self._stage is not None:
                    self._stage.most_waiting = max(self._stage.most_waiting, len(self._items))
                self._changed.notify_all()
            return not self._closed

    def get(self, stops: Sequence[threading.Event], waits: Callable[[], bool]) -> T | _End | None:
        """Wait for an item; once a stop is set, the end; None where it is not to be waited for."""
        with self._changed:
            while not self._items:
                if any(stop.is_set() for stop in stops):
                    return _End(None)
                if not waits():
                    return None
                self._changed.wait(_POLL_S if stops else None)
            item, weight = self._items.popleft()
            self._weight -= weight
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def _has_room(self, weight: float) -> bool:
        return not self._items or (len(self._items) < self._size and self._weight + weight <= self._limit)


def each(function: Callable[[T], U], items: Generator[T]) -> Generator[U]:
    """`function` of each item, in the thread that pulls."""
    with closing(items):
        for item in items:
            yield function(item)


def ahead(
    items: Iterable[T],
    *,
    size: int,
    name: str,
    limit: float = float("inf"),
    weight: Callable[[T], float] = lambda _: 0.0,
    stage: Stage | None = None,
    stops: Sequence[threading.Event] = (),
    ended: threading.Event | None = None,
) -> Generator[T]:
    """The items in order, made in a thread of their own, at most `size` of them waiting.

    name : of the thread
    weight, limit : the waiting items weigh no more than `limit` together; one that is heavier alone waits alone
    stage : gets to know how many waited at most
    stops : once one is set, the items end, even where the next one is never made
    ended : is set when nobody pulls any more
    Who stops pulling waits for the thread: a runtime that computes while the process ends would abort it. Only a thread
    with `stops`, which may wait for ever, is left alone. Errors of the items come out after the items before them.
    """
    queue: _Ahead[T] = _Ahead(size, limit, weight, stage)
    return cast("Generator[T]", _pulled(queue, items, name, stops, ended, lambda: True))


def at_hand(
    items: Iterable[T], *, size: int, name: str, stage: Stage, waits: Callable[[], bool]
) -> Generator[T | None]:
    """As `ahead`; where no item is there yet and `waits` says that none is to be waited for, None."""
    return _pulled(_Ahead(size, float("inf"), lambda _: 0.0, stage), items, name, (), None, waits)


def _pulled(
    queue: _Ahead[T],
    items: Iterable[T],
    name: str,
    stops: Sequence[threading.Event],
    ended: threading.Event | None,
    waits: Callable[[], bool],
) -> Generator[T | None]:
    thread = threading.Thread(target=queue.fill, args=(items,), name=name, daemon=True)
    thread.start()
    try:
        while not any(stop.is_set() for stop in stops):
            item = queue.get(stops, waits)
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item  # or it would be kept until the next one comes
    finally:
        if ended is not None:
            ended.set()
        queue.close()
        if not stops:
            thread.join()


class _Task(Generic[T, U]):
    """One item on its way through a pool."""

    def __init__(self, item: T) -> None:
        self.item = item
        self.has_begun = self.abandoned = False
        self.done = threading.Event()
        self.result: U
        self.error: BaseException | None = None

    def run(self, function: Callable[[T], U]) -> None:
        self.has_begun = True
        try:
            self.result = function(self.item)
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            self.error = error
        self.done.set()

    def is_over(self, limit_s: float) -> bool:
        """Wait until it is done; False where it was worked on for longer than the limit meanwhile.

        Waits are counted, not the clock: it goes on while the process is suspended.
        """
        waited_s = 0.0
        while not self.done.wait(_POLL_S):
            waited_s += _POLL_S if self.has_begun else 0.0
            if waited_s >= limit_s:
                return self.done.is_set()
        return True


class _Pool(Generic[T, U]):
    """Threads that work on tasks. One that is stuck is replaced, and ends when it comes back."""

    def __init__(self, function: Callable[[T], U], threads: int, name: str) -> None:
        self._function, self._name = function, name
        self._queue: SimpleQueue[_Task[T, U] | None] = SimpleQueue()
        self._hired = count()
        for _ in range(threads):
            self.hire()

    def hire(self) -> None:
        name = f"{self._name}-{next(self._hired)}"
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, item: T) -> _Task[T, U]:
        task: _Task[T, U] = _Task(item)
        self._queue.put(task)
        return task

    def close(self) -> None:
        """Drop what waits; threads end with what they are at."""
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        for _ in range(next(self._hired)):
            self._queue.put(None)

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            task.run(self._function)
            if task.abandoned:
                return
            del task  # or it would keep its result until the next one comes


def in_order(
    function: Callable[[T], U],
    items: Generator[T],
    *,
    threads: int,
    size: int,
    name: str,
    limit_s: float,
    too_slow: Callable[[T], U],
) -> Generator[U]:
    """`function` of each item, in order, worked on by `threads` threads, at most `size` of them begun or waiting.

    limit_s : seconds that the function may be waited for
    too_slow : what an item gives whose time is over. Its thread cannot be stopped: another takes its place, and it ends
        by itself when it comes back
    Errors of the function come out here, in the item's turn.
    """

    def result(task: _Task[T, U]) -> U:
        if not task.is_over(limit_s):
            task.abandoned = True
            pool.hire()
            return too_slow(task.item)
        if task.error is not None:
            raise task.error
        return task.result

    pending: deque[_Task[T, U]] = deque()
    with closing(_Pool(function, threads, name)) as pool, closing(items):
        for item in items:
            pending.append(pool.submit(item))
            if len(pending) >= size:
                yield result(pending.popleft())
        while pending:
            yield result(pending.popleft())
