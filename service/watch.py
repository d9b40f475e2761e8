"""An engine that will not answer any more ends its process, as only a new one has another."""

import asyncio
import logging
import os
from collections.abc import Callable
from time import perf_counter

from service.deployment import Deployment

logger = logging.getLogger("vaeserve")

# How often the engine is looked after, in seconds.
_EVERY_S = 1.0
# A look that comes so much later was that of a process which had no time.
_LATE_S = 5.0


async def watch(deployment: Callable[[], Deployment]) -> None:
    """Look after the engine of what is deployed by then, for as long as the process serves."""
    async with asyncio.TaskGroup() as looking:
        looking.create_task(_for_a_run_that_does_not_end(deployment))
        looking.create_task(_for_a_graph_that_fails(deployment))


async def _for_a_run_that_does_not_end(deployment: Callable[[], Deployment]) -> None:
    """Seen once it may be a run that has just had no time, as the process; where that was stopped for a while, as a
    look that comes late tells, the run has that while more.
    """
    looks, looked_at = 0, perf_counter()
    while True:
        await asyncio.sleep(_EVERY_S)
        late_s = perf_counter() - looked_at - _EVERY_S
        looked_at += late_s + _EVERY_S
        if late_s > _LATE_S:
            deployment().lane.forgive(late_s)
        looks = looks + 1 if deployment().is_wedged else 0
        if looks > 1:
            _end("a run of a graph does not end")


async def _for_a_graph_that_fails(deployment: Callable[[], Deployment]) -> None:
    """A GPU whose context is lost, say by a fault of its memory, fails every run from then on."""
    while True:
        await asyncio.sleep(_EVERY_S)
        for model in deployment().models:
            if graph := await model.failing_graph():
                _end(f"{graph} of {model.label} fails on what it ran at the start")


def _end(reason: str) -> None:
    logger.critical("%s; this process ends, and with it what it has accepted", reason)
    logging.shutdown()
    os._exit(1)
