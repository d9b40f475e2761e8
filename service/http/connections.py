"""The open connections of one process: how many there may be, and a look at each from time to time."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from service.errors import Problem, TooManyConnections
from service.http.outgoing import Outbox
from service.settings import Settings

# Seconds between two looks; what is bounded in time is so to within one of them.
_LOOK_EVERY_S = 0.5

# Who was refused still has this long to read why, as closing on bytes that were not read would take the answer back.
# A flood does not: those beyond are closed at once.
LINGER_S = 5.0
_MAX_LINGERING = 100


class Connection(Protocol):
    """What this place knows of a connection."""

    def look(self, now: float) -> None:
        """Close what takes too long."""

    def close(self) -> None:
        """Close, whatever goes on."""


class Connections:
    """All that are open. One timer looks at them in turn, so none of them needs its own."""

    def __init__(self, settings: Settings, *, on_refusal: Callable[[Problem], None]) -> None:
        self.settings = settings
        self.on_refusal = on_refusal
        self.outbox = Outbox()
        self._open: set[Connection] = set()
        self._lingering: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, connection: Connection) -> None:
        """Take one in.

        Raises:  TooManyConnections
        """
        limit = self.settings.max_connections
        if len(self._open) >= limit:
            raise TooManyConnections(f"connections: {limit} are open, which is the limit", headers={"retry-after": "1"})
        self._open.add(connection)
        self._look_later()

    def linger(self, connection: Connection) -> None:
        """Close one soon, to which the last was said."""
        if connection in self._lingering:
            return
        self._open.discard(connection)
        if len(self._lingering) >= _MAX_LINGERING:
            connection.close()
            return
        self._lingering[connection] = asyncio.get_running_loop().time() + LINGER_S
        self._look_later()

    def leave(self, connection: Connection) -> None:
        """Forget one that is closed."""
        self._open.discard(connection)
        self._lingering.pop(connection, None)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for connection in tuple(self._open):
            connection.look(now)
        for connection in [each for each, until in self._lingering.items() if until < now]:
            connection.close()
        if self._open or self._lingering:
            self._look_later()
