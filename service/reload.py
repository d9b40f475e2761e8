"""A new version of one model or of all: proven beside what serves, then served."""

import asyncio
import logging

from starlette.datastructures import State

from service import greeting
from service.aside import aside
from service.bundle import BadBundle
from service.deployment import Deployment, reloaded
from service.errors import NotFound
from service.machine import BadEngine
from service.reload_log import log_served, logged_refusal

logger = logging.getLogger("vaeserve")


class NotProven(Exception):
    """What was to be loaded cannot be served, and why."""


class Reload:
    """Reloads of a process that serves by itself, one at a time."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._turn = asyncio.Lock()

    async def __call__(self, name: str | None) -> None:
        """Take one model in its new version, or without a name all that the settings name.

        Raises:  ReloadRefused if it is not proven
        """
        async with self._turn:
            try:
                deployment = await proven(self._state.deployment, name)
            except NotProven as error:
                raise logged_refusal(str(error)) from error
            swap(self._state, deployment)
            log_served(greeting.served(deployment, name))


async def proven(deployment: Deployment, name: str | None) -> Deployment:
    """One model in its new version, or without a name all that the settings name, loaded beside what serves.

    Raises:  NotProven
    """
    try:
        return await aside(reloaded, deployment, name)
    except (BadBundle, BadEngine, NotFound) as error:
        raise NotProven(str(error)) from error
    except Exception as error:  # a mistake of ours, or no memory: what was loaded serves on
        logger.exception("reload failed")
        raise NotProven(repr(error)) from error


def swap(state: State, deployment: Deployment) -> None:
    """Serve with another deployment from now on; requests that have begun finish on the one that they began with."""
    state.deployment = deployment
    state.metrics.serving(deployment.models.labels)
