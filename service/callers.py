"""A caller may leave before its answer is ready, or run out of time; its job is then taken back."""

import asyncio
from time import perf_counter

from starlette.types import Receive

from service.batcher import Done
from service.errors import DeadlinePassed

# A caller whose answer takes longer than this is listened to, so that its rows are dropped when it leaves.
PATIENCE_S = 0.05


class CallerGone(Exception):
    """The caller closed the connection before its answer was ready. Nobody is left to be told."""


async def attended(reply: "asyncio.Future[Done]", receive: Receive, *, deadline: "Deadline") -> Done:
    """The reply, unless the deadline comes first; when it is slow, listening meanwhile for the caller to leave.

    Raises:  CallerGone, DeadlinePassed
    """
    attendant = _Attendant(reply, receive, deadline)
    try:
        return await reply
    except asyncio.CancelledError:
        if attendant.outcome is not None:
            raise attendant.outcome from None
        raise
    finally:
        attendant.leave()


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
        return DeadlinePassed(f"deadline: {self._timeout_ms} ms passed before the rows had run")


class _Attendant:
    """Cancels a reply at the deadline, or when its caller leaves, for whom it begins to listen after a while."""

    __slots__ = ("_deadline", "_listening", "_receive", "_reply", "_timer", "outcome")

    def __init__(self, reply: "asyncio.Future[Done]", receive: Receive, deadline: Deadline) -> None:
        self.outcome: CallerGone | DeadlinePassed | None = None
        self._reply = reply
        self._receive = receive
        self._deadline = deadline
        self._listening: asyncio.Task[None] | None = None
        left_s = deadline.left_s()
        first = self._time_is_over if left_s <= PATIENCE_S else self._listen
        self._timer = asyncio.get_running_loop().call_later(max(0.0, min(left_s, PATIENCE_S)), first)

    def leave(self) -> None:
        self._timer.cancel()
        if self._listening is not None:
            self._listening.cancel()

    def _listen(self) -> None:
        self._listening = asyncio.ensure_future(self._hear())
        self._timer = asyncio.get_running_loop().call_later(max(0.0, self._deadline.left_s()), self._time_is_over)

    async def _hear(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._end(CallerGone())

    def _time_is_over(self) -> None:
        self._end(self._deadline.passed())

    def _end(self, outcome: CallerGone | DeadlinePassed) -> None:
        if not self._reply.done():
            self.outcome = outcome
            self._reply.cancel()
