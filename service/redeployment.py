"""A new version of one model or of all, in a process that serves by itself: proven beside what serves, then served."""

import asyncio

from starlette.datastructures import State

from service import greeting
from service.aside import aside
from service.deployment import redeploy
from service.reloads import log_served, logged_refusal


class Redeployment:
    """Puts a new deployment in the place of the application's, one at a time; requests that have begun finish on the
    one that they began with.
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
                deployment = await aside(redeploy, self._state.deployment, name)
            except Exception as error:  # whatever it is
                raise logged_refusal(str(error)) from error
            self._state.deployment = deployment
            self._state.metrics.serving(deployment.models.labels)
            log_served(greeting.served(deployment, name))
