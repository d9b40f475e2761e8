"""A request to end a run early, from the event loop to whatever runs in a thread."""

from collections.abc import Callable
from threading import Lock


class Stop:
    """Asked for once, at any time; whoever runs says how to end."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._asked = False
        self._ways: list[Callable[[], None]] = []

    def ask(self) -> None:
        """End the run as soon as it can."""
        with self._lock:
            self._asked = True
            for way in self._ways:
                way()

    def by(self, way: Callable[[], None]) -> None:
        """How the run can be ended; done at once if that was asked already."""
        with self._lock:
            self._ways.append(way)
            if self._asked:
                way()
