"""Requests that arrive on schedule whatever the server does, or in the place of those that were answered, and what
became of them. For a process of its own, since it must keep its schedule.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from time import perf_counter, process_time

import numpy as np
import uvloop

from benchmarks.connections import Answer, Connection, Unanswered, connect

# How often what goes on is looked at; uvloop's timers count milliseconds.
_TICK_S = 0.001
_ANSWERED_WITHIN_S = 60.0


@dataclass(frozen=True)
class Arrived:
    """What became of requests: accepted were answered 200, refused 429 with Retry-After, failed are all others.

    Units:  accepted_per_s of those that were answered within the time; p50_ms and p99_ms of those that were accepted,
            from when they were due, 0 if there were none; lag_ms between due and sent, at the 99th percentile and at
            most; generator_cores that this end kept busy
    """

    sent: int
    accepted: int
    refused: int
    failed: int
    seconds: float
    accepted_per_s: float
    p50_ms: float
    p99_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    generator_cores: float


def on_schedule(
    port: int, requests: Sequence[bytes], *, connections: int, seconds: float, per_s: float, tick_s: float = _TICK_S
) -> Arrived:
    """An open loop: so many requests a second, evenly spaced, over whichever of the connections is idle for longest.
    What is due within a tick is sent together at its end.
    """
    load = _Load(requests, seconds=seconds)
    return _run(load.through(port, connections, load.keep_schedule(per_s, tick_s=tick_s)))


def in_turn(port: int, requests: Sequence[bytes], *, connections: int, seconds: float, at_a_time: int) -> Arrived:
    """A closed loop: so many requests under way at any time."""
    load = _Load(requests, seconds=seconds)
    return _run(load.through(port, connections, load.keep_up(at_a_time)))


def _run(load: Coroutine[None, None, Arrived]) -> Arrived:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


class _Load:
    """Requests in turn, the connections that are idle, and those that arrived while none was."""

    def __init__(self, requests: Sequence[bytes], *, seconds: float) -> None:
        self._requests = cycle(requests)
        self._seconds = seconds
        self._idle: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._is_closed_loop = False
        self._in_time = self._refused = self._failed = 0
        self._latencies_s: list[float] = []
        self._lags_s: list[float] = []

    async def through(self, port: int, connections: int, arriving: Coroutine[None, None, None]) -> Arrived:
        """What becomes of what arrives, over so many connections."""
        self._port = port
        for _ in range(connections):
            await self._open()
        self._ends_at = perf_counter() + self._seconds
        began_s = process_time()
        await arriving
        cpu_s = process_time() - began_s
        async with asyncio.timeout(_ANSWERED_WITHIN_S):
            while self._under_way or self._waiting:  # noqa: ASYNC110  callbacks of replies end it
                await asyncio.sleep(_TICK_S)
        await asyncio.gather(*self._opening)
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(_TICK_S)  # in which they close
        return self._arrived(cpu_s)

    async def keep_schedule(self, per_s: float, *, tick_s: float) -> None:
        """Let them arrive one by one, evenly over the time."""
        began = perf_counter()
        for count in range(max(1, round(per_s * self._seconds))):
            due = began + count / per_s
            while perf_counter() < due:  # noqa: ASYNC110  the clock ends it
                await asyncio.sleep(tick_s)
            self._arrive(due)

    async def keep_up(self, at_a_time: int) -> None:
        """Let one arrive for each that was answered, until the time is over."""
        self._is_closed_loop = True
        for _ in range(at_a_time):
            self._arrive(perf_counter())
        await asyncio.sleep(self._seconds)

    def _arrive(self, due: float) -> None:
        while self._idle:
            connection = self._idle.popleft()
            if connection.is_open:
                self._send(connection, due)
                return
            self._open_another()
        self._waiting.append(due)

    def _send(self, connection: Connection, due: float) -> None:
        self._lags_s.append(perf_counter() - due)
        self._under_way += 1
        connection.ask(next(self._requests)).add_done_callback(partial(self._ended, connection, due))

    def _ended(self, connection: Connection, due: float, reply: "asyncio.Future[Answer]") -> None:
        now = perf_counter()
        self._under_way -= 1
        error = reply.exception()
        if connection.is_open:
            self._use(connection)
        else:
            self._open_another()
        if isinstance(error, Unanswered) and not error.is_lost:
            self._arrive(due)  # once more, as nobody has read it
            return
        self._count(None if error else reply.result(), now=now, due=due)
        if self._is_closed_loop and now < self._ends_at:
            self._arrive(now)

    def _count(self, answer: Answer | None, *, now: float, due: float) -> None:
        if answer is not None and answer.status == 200:
            self._latencies_s.append(now - due)
            self._in_time += now <= self._ends_at
        elif answer is not None and answer.status == 429 and answer.header("retry-after"):
            self._refused += 1
        else:
            self._failed += 1

    def _use(self, connection: Connection) -> None:
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _open_another(self) -> None:
        opening = asyncio.ensure_future(self._open())
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        self._use(await connect(self._port))

    def _arrived(self, cpu_s: float) -> Arrived:
        accepted = len(self._latencies_s)
        return Arrived(
            sent=accepted + self._refused + self._failed,
            accepted=accepted,
            refused=self._refused,
            failed=self._failed,
            seconds=self._seconds,
            accepted_per_s=round(self._in_time / self._seconds, 2),
            p50_ms=_percentile_ms(self._latencies_s, 50),
            p99_ms=_percentile_ms(self._latencies_s, 99),
            lag_p99_ms=_percentile_ms(self._lags_s, 99),
            lag_max_ms=_percentile_ms(self._lags_s, 100),
            generator_cores=round(cpu_s / self._seconds, 3),
        )


def _percentile_ms(times_s: Sequence[float], percentile: float) -> float:
    """Milliseconds, 0 where there are no times."""
    return round(1000 * float(np.percentile(times_s, percentile)), 2) if times_s else 0.0
