"""Signals that end a process at once, the first one of a container too."""

import os
import signal
from types import FrameType


def end_at(number: signal.Signals) -> None:
    """Let a signal end this process, whatever it is doing, with the code that a shell gives one that it killed.

    The kernel spares the first process of a container every signal that it has no handler for.
    """
    signal.signal(number, _end if os.getpid() == 1 else signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)
