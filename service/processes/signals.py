"""Signals that end a process at once, the first one of a container too, and those that are heard by a busy one."""

import faulthandler
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

# What a process that is stuck has to say where.
_DUMPING_S = 1


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


def end_within(seconds: float) -> None:
    """Let this process end by then, even a stuck one, and say where that is stuck: by a thread that needs nothing of
    Python, and by one that says nothing, where nobody hears it.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    unheard = threading.Timer(seconds + _DUMPING_S, os._exit, (1,))
    unheard.daemon = True
    unheard.start()


def _end(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)
