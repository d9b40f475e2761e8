"""Waiting for what must come to be, as long as a busy machine may need and not for ever."""

import time
from collections.abc import Callable

WITHIN_S = 30


def until(true: Callable[[], object]) -> None:
    """Wait for it; a test fails where it does not come."""
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)
