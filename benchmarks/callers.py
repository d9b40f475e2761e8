"""Callers who ask one thing after another, whatever happens to the server, and note what happens to them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.connections import Answer, Connection, Unanswered, connect
from benchmarks.versions import Versions

_REFUSED_PAUSE_S = 0.02


@dataclass
class Seen:
    """What callers saw: right answers and wrong ones, other statuses than 200, requests that were lost as they had been
    accepted, those that had not been and were sent again, and connections that were refused.
    """

    right: int = 0
    wrong: int = 0
    lost: int = 0
    again: int = 0
    refused: int = 0
    statuses: Counter[int] = field(default_factory=Counter)


class Callers:
    """So many callers of one server, each with a connection of its own that it opens anew where it has to. What they
    see is added to what was seen before.
    """

    def __init__(self, port: int, versions: Versions, seen: Seen, *, count: int) -> None:
        self.seen = seen
        self.digests = [""] * count
        """What each was last answered by."""
        self.lost_at: list[int] = []
        """The ports at this end of connections on which requests were lost."""
        self._port = port
        self._versions = versions
        self._stopped = False

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """While they call. In the end each has heard its last answer."""
        async with asyncio.TaskGroup() as tasks:
            for who in range(len(self.digests)):
                tasks.create_task(self._call(who))
            yield
            self._stopped = True

    async def _call(self, who: int) -> None:
        connection: Connection | None = None
        place = who
        while not self._stopped:
            if connection is None or not connection.is_open:
                connection = await self._connected()
            if connection is not None:
                place += await self._ask(connection, who, place % len(self._versions.requests))
        if connection is not None:
            connection.close()

    async def _connected(self) -> Connection | None:
        try:
            return await connect(self._port)
        except ConnectionError:
            self.seen.refused += 1
            await asyncio.sleep(_REFUSED_PAUSE_S)
            return None

    async def _ask(self, connection: Connection, who: int, place: int) -> bool:
        """Whether to go on to the next request."""
        try:
            answer = await connection.ask(self._versions.requests[place])
        except Unanswered as unanswered:
            if unanswered.is_lost:
                self.seen.lost += 1
                self.lost_at.append(connection.port)
            else:
                self.seen.again += 1
            return unanswered.is_lost
        self._hear(who, place, answer)
        return True

    def _hear(self, who: int, place: int, answer: Answer) -> None:
        if answer.status != 200:
            self.seen.statuses[answer.status] += 1
        elif self._versions.is_right(place, answer):
            self.seen.right += 1
            self.digests[who] = (answer.header("x-model") or "").rpartition("@")[2]
        else:
            self.seen.wrong += 1
