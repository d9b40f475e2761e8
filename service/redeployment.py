"""A new version of one model or of all, proven beside what serves and then served; what the log says of it."""

import asyncio
import logging
from collections.abc import Iterable

from starlette.datastructures import State

from service import greeting
from service.deployment import redeploy
from service.errors import ReloadRefused

logger = logging.getLogger("vaeserve")


class Redeployment:
    """Puts a new deployment in the place of the application's, in a process that serves by itself: one at a time, and
    requests that have begun finish on the one that they began with.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._turn = asyncio.Lock()

    async def __call__(self, name: str | None) -> None:
        """Take one model in its new version, or without a name all that the settings name.

        Raises:  ReloadRefused if it is not proven
        """
        async with self._turn:
            try:
                deployment = await asyncio.to_thread(redeploy, self._state.deployment, name)
            except Exception as error:  # whatever it is
                raise logged_refusal(str(error)) from error
            self._state.deployment = deployment
            log_served(greeting.served(deployment, name))


def log_served(lines: Iterable[str]) -> None:
    """Tell what is served from now on, a line for each model."""
    for line in lines:
        logger.info("reload: serving %s", line)


def logged_refusal(reason: str) -> ReloadRefused:
    """The problem that says why what was loaded serves on; the log says the same."""
    problem = ReloadRefused(f"reload: {reason}; what was loaded serves on")
    logger.error("%s", problem.detail)
    return problem
