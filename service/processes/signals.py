"""Signals that end a process at once, the first one of a container too, and those that are heard by a busy one."""

import os
import signal
from collections.abc import Callable
from types import FrameType


def end_at(number: signal.Signals) -> None:
    """Let a signal end this process, whatever it is doing, with the code that a shell gives one that it killed.

    The kernel spares the first process of a container every signal that it has no handler for.
    """
    signal.signal(number, _end if os.getpid() == 1 else signal.SIG_DFL)


def heed_at_once(number: signal.Signals, act: Callable[[], None]) -> None:
    """Do something at a signal that the event loop has a handler for, before the loop comes to that: it may wait for
    whoever takes what it writes, which the signal interrupts from now on; the loop had asked that it does not.
    """
    signal.signal(number, lambda _number, _frame: act())


def _end(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)
