"""How long a request still has."""

from time import perf_counter

from service.errors import DeadlinePassed


class Deadline:
    """The moment by which a request is answered, in one way or the other.

    Units:  began as perf_counter gives it
    """

    __slots__ = ("_at", "_timeout_ms")

    def __init__(self, began: float, *, timeout_ms: int) -> None:
        self._timeout_ms = timeout_ms
        self._at = began + timeout_ms / 1000

    def left_s(self) -> float:
        """Seconds until then, negative once it has passed."""
        return self._at - perf_counter()

    def passed(self) -> DeadlinePassed:
        """The problem of a request whose time is over."""
        return DeadlinePassed(f"deadline: {self._timeout_ms} ms passed before the answer could be made")
