"""A caller may leave before its answer is ready, or run out of time; its job is then taken back."""

import asyncio
from collections import deque
from time import perf_counter

from starlette.types import Receive

from service.batcher import Done
from service.deadline import Deadline
from service.errors import DeadlinePassed

# A caller whose answer takes longer than this is listened to, so that its rows are dropped when it leaves.
PATIENCE_S = 0.05


class CallerGone(Exception):
    """The caller closed the connection before its answer was ready. Nobody is left to be told."""


class Patience:
    """The callers who wait for an answer, in the order in which they began to. One timer looks after those who wait
    long; most do not, and have no timer of their own.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Attendant] = deque()
        self._is_looking = False

    async def attended(self, reply: "asyncio.Future[Done]", receive: Receive, *, deadline: Deadline) -> Done:
        """The reply, unless the deadline comes first; when it is slow, listening meanwhile for the caller to leave.

        Raises:  CallerGone, DeadlinePassed
        """
        attendant = _Attendant(reply, receive, deadline)
        if deadline.left_s() <= PATIENCE_S:
            attendant.watch_the_clock()
        else:
            self._attend(attendant)
        try:
            return await reply
        except asyncio.CancelledError:
            if attendant.outcome is not None:
                raise attendant.outcome from None
            raise
        finally:
            attendant.leave()

    def _attend(self, attendant: "_Attendant") -> None:
        self._waiting.append(attendant)
        if not self._is_looking:
            self._look_in(PATIENCE_S)

    def _look_in(self, seconds: float) -> None:
        self._is_looking = True
        asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        """Begin to listen to those who have waited long, and forget those who do not wait any more."""
        long_ago = perf_counter() - PATIENCE_S
        while self._waiting and (self._waiting[0].has_left or self._waiting[0].began <= long_ago):
            attendant = self._waiting.popleft()
            if not attendant.has_left:
                attendant.listen()
        self._is_looking = False
        if self._waiting:
            self._look_in(self._waiting[0].began - long_ago)


class _Attendant:
    """Cancels a reply at the deadline, or when its caller leaves, once it listens for that.

    Units:  began as perf_counter gives it
    """

    __slots__ = ("_deadline", "_listening", "_receive", "_reply", "_timer", "began", "outcome")

    def __init__(self, reply: "asyncio.Future[Done]", receive: Receive, deadline: Deadline) -> None:
        self.began = perf_counter()
        self.outcome: CallerGone | DeadlinePassed | None = None
        self._reply: asyncio.Future[Done] | None = reply
        self._receive: Receive | None = receive
        self._deadline = deadline
        self._listening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def has_left(self) -> bool:
        """Whether the reply is not waited for any more."""
        return self._reply is None

    def leave(self) -> None:
        """Let go of a reply that is there."""
        # This may be kept until the next look, but nothing of the request.
        self._reply = self._receive = None
        if self._timer is not None:
            self._timer.cancel()
        if self._listening is not None:
            self._listening.cancel()

    def watch_the_clock(self) -> None:
        """Cancel the reply at the deadline."""
        left_s = max(0.0, self._deadline.left_s())
        self._timer = asyncio.get_running_loop().call_later(left_s, self._end, self._deadline.passed())

    def listen(self) -> None:
        """Cancel the reply when its caller leaves, and at the deadline."""
        self._listening = asyncio.ensure_future(self._hear())
        self.watch_the_clock()

    async def _hear(self) -> None:
        while self._receive is not None and (await self._receive())["type"] != "http.disconnect":
            pass
        self._end(CallerGone())

    def _end(self, outcome: CallerGone | DeadlinePassed) -> None:
        if self._reply is not None and not self._reply.done():
            self.outcome = outcome
            self._reply.cancel()
