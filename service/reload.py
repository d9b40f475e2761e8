"""A new version of one model or of all: proven beside what serves, then served."""

import asyncio
import logging
import os

from starlette.datastructures import State

from service import greeting
from service.aside import aside
from service.bundle import BadBundle
from service.deployment import Deployment, reloaded
from service.errors import NotFound
from service.machine import BadEngine
from service.reload_turn import LOAD_S, Turn, log_served, logged_refusal

logger = logging.getLogger("vaeserve")


class NotProven(Exception):
    """What was to be loaded cannot be served, and why."""


class Reload:
    """Reloads of a process that serves by itself, one at a time."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.turn = Turn()

    async def __call__(self, name: str, asked_by: str) -> None:
        """Take one model in its new version, for an admin.

        Raises:  ReloadRefused if it is not proven
        """
        self.turn.asked(asked_by)
        await self.in_turn(name, asked_by)

    async def in_turn(self, name: str | None, asked_by: str) -> None:
        """Take one model in its new version, or without a name all that the settings name.

        Raises:  ReloadRefused if it is not proven
        """
        async with self.turn.of(asked_by):
            try:
                deployment = await proven(self._state.deployment, name)
            except NotProven as error:
                self._state.metrics.reloaded(is_refused=True)
                raise logged_refusal(str(error)) from error
            swap(self._state, deployment)
            self._state.metrics.reloaded(is_refused=False)
            log_served(greeting.served(deployment, name))


async def proven(deployment: Deployment, name: str | None) -> Deployment:
    """One model in its new version, or without a name all that the settings name, loaded beside what serves. A load
    that does not end is left to its thread, and what becomes of it then is dropped.

    Raises:  NotProven
    """
    try:
        async with asyncio.timeout(LOAD_S) as limit:
            return await aside(reloaded, deployment, name)
    except (BadBundle, BadEngine, NotFound) as error:
        raise NotProven(str(error)) from error
    except Exception as error:
        if limit.expired():
            raise NotProven(f"process {os.getpid()} has not loaded it within {LOAD_S} s") from error
        logger.exception("reload failed")  # a mistake of ours, or no memory: what was loaded serves on
        raise NotProven(repr(error)) from error


def swap(state: State, deployment: Deployment) -> None:
    """Serve with another deployment from now on; requests that have begun finish on the one that they began with."""
    state.deployment = deployment
    state.metrics.serving(deployment.models.labels)
