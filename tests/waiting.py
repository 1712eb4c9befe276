"""Waiting for what other threads are about to do."""

import time
from collections.abc import Callable


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it holds, now or soon."""
    end = time.monotonic() + seconds
    while not (now := holds()) and time.monotonic() < end:
        time.sleep(0.005)
    return now
