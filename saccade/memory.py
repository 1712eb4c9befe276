"""Memory that several threads want much of at the same time."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Budget:
    """An amount of which threads hold parts, in any unit; who asks for more than is left waits.

    A part larger than the whole amount is lent while nothing else is. A thread that holds a part must not ask for
    another one.
    """

    def __init__(self, amount: int) -> None:
        self._amount = amount
        self._lent = 0
        self._changed = threading.Condition()

    @contextmanager
    def lend(self, part: int) -> Iterator[None]:
        """Hold a part for the length of a block. Memory that was freed inside it then goes back to the system."""
        with self._changed:
            self._changed.wait_for(lambda: self._lent == 0 or self._lent + part <= self._amount)
            self._lent += part
        try:
            yield
        finally:
            give_back()
            with self._changed:
                self._lent -= part
                self._changed.notify_all()


def give_back() -> None:
    """Have glibc return what is free: it keeps it for the thread, and each would stay as large as it ever was."""
    with suppress(OSError, TypeError, AttributeError):  # other C libraries, which have no such function
        ctypes.CDLL(None).malloc_trim(0)
