"""Turns to reload, one after the other, and what the log says of each; the parent of several workers takes them too."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from service.errors import ReloadRefused

logger = logging.getLogger("vaeserve")

# Who asks for a reload of all models, as the log calls it.
SIGHUP = "SIGHUP"

# A load that has not ended by then, in seconds, is given up. That of large models takes a minute; one from a disk or a
# network that does not answer has no end.
LOAD_S = 600


class Turn:
    """Who reloads, one after the other."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    def asked(self, asked_by: str) -> None:
        """Tell of a reload that somebody asks for, if it has to wait."""
        if self._lock.locked():
            logger.info("reload: one is under way, another one waits for it (%s)", asked_by)

    @asynccontextmanager
    async def of(self, asked_by: str) -> AsyncIterator[None]:
        """While somebody's reload is done; the log tells its beginning."""
        async with self._lock:
            logger.info("reload: begun (%s)", asked_by)
            yield


def log_served(lines: Iterable[str]) -> None:
    """Tell what is served from now on, a line for each model."""
    for line in lines:
        logger.info("reload: serving %s", line)


def logged_refusal(reason: str) -> ReloadRefused:
    """The problem that says why what was loaded serves on; the log says the same."""
    problem = ReloadRefused(f"reload: {reason}; what was loaded serves on")
    logger.error("%s", problem.detail)
    return problem
