"""Being asked to stop: a first signal is noted, so that work can come to a good end, and a second one kills."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What is sent to all processes of a job, `torchrun` passes on to its own, which then have it twice.
_ECHO_S = 5.0


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that a first SIGINT or SIGTERM puts its number into; a second one kills, as ever, but for a SIGTERM within
    seconds of the first signal, which is its echo.
    """
    asked: list[int] = []
    asked_at_s = 0.0

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at_s
        if not asked:
            asked.append(number)
            asked_at_s = time.monotonic()
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        elif time.monotonic() - asked_at_s >= _ECHO_S:
            restore()
            signal.raise_signal(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield asked
    finally:
        restore()
