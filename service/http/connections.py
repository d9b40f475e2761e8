"""The open connections of one process: how many there may be, and a look at each from time to time."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from service.errors import Problem, TooManyConnections
from service.http.outgoing import Outbox
from service.settings import Settings

logger = logging.getLogger("vaeserve")

# Beyond the cap so many are taken on which only probes are answered: a process that is full must not look dead to who
# asks whether it lives, or what it counts.
_MAX_PROBING = 8

# Seconds between two looks; what is bounded in time is so to within one of them.
_LOOK_EVERY_S = 0.5

# Who was refused still has this long to read why, as closing on bytes that were not read would take the answer back.
# A flood does not: those beyond are closed at once.
LINGER_S = 5.0
_MAX_LINGERING = 100


class Connection(Protocol):
    """What this place knows of a connection."""

    @property
    def has_sent_all(self) -> bool:
        """Whether nothing waits here for the other side to read."""

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
        self._resting: dict[Connection, None] = {}  # in the order in which they began to
        self._has_told = False  # that there is no room
        self._lingering: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, connection: Connection) -> Problem | None:
        """Take one in, where there is no room in place of the one that has rested longest. Where none rests either,
        what is answered on it to all but probes.

        Raises:  TooManyConnections
        """
        limit, refusal = self.settings.max_connections, None
        if len(self._open) >= limit and not self._has_made_room():
            refusal = TooManyConnections(
                f"connections: {limit} are open, which is the limit", headers={"retry-after": "1"}
            )
            self._tell_once()
            if len(self._open) >= limit + _MAX_PROBING:
                raise refusal
        self._open.add(connection)
        self._look_later()
        return refusal

    def rest(self, connection: Connection) -> None:
        """Note that one is answered, and has not begun to ask again."""
        self._resting[connection] = None

    def stir(self, connection: Connection) -> None:
        """Note that one begins to ask."""
        self._resting.pop(connection, None)

    def linger(self, connection: Connection) -> None:
        """Close one soon, to which the last was said."""
        if connection in self._lingering:
            return
        self._open.discard(connection)
        self._resting.pop(connection, None)
        if len(self._lingering) >= _MAX_LINGERING:
            connection.close()
            return
        self._lingering[connection] = asyncio.get_running_loop().time() + LINGER_S
        self._look_later()

    def leave(self, connection: Connection) -> None:
        """Forget one that is closed."""
        self._open.discard(connection)
        self._resting.pop(connection, None)
        self._lingering.pop(connection, None)

    def _has_made_room(self) -> bool:
        """Whether there was one to close that rested."""
        longest = next((each for each in self._resting if each.has_sent_all), None)
        if longest is None:
            return False
        self.leave(longest)
        longest.close()
        return True

    def _tell_once(self) -> None:
        """Warn that there is no room, unless that was said since a look found some."""
        if not self._has_told:
            self._has_told = True
            limit = self.settings.max_connections
            logger.warning(
                "connections: %d are open, which is the limit, and none rests; others are refused, but for probes",
                limit,
            )

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for connection in tuple(self._open):
            connection.look(now)
        if len(self._open) < self.settings.max_connections:
            self._has_told = False
        for connection in [each for each, until in self._lingering.items() if until < now]:
            connection.close()
        if self._open or self._lingering:
            self._look_later()
