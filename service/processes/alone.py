"""A process that serves by itself: no parent, no other workers."""

import asyncio
import logging
import signal
import socket
from contextlib import suppress

from fastapi import FastAPI

from service import greeting
from service.app import create_app
from service.aside import abandon
from service.errors import ReloadRefused
from service.processes import ports
from service.processes.server import Server
from service.reload import Reload
from service.reload_turn import SIGHUP
from service.settings import Settings

logger = logging.getLogger("vaeserve")


def serve(settings: Settings, sockets: list[socket.socket], *, onnxruntime: str) -> None:
    """Load, then serve until told to end.

    Raises:  BadBundle, BadEngine, BadKeys, BadAddress
    """
    app = create_app(settings)
    url = ports.url(sockets)
    for line in greeting.lines(app.state.deployment, onnxruntime=onnxruntime, url=url):
        logger.info("%s", line)
    server = Server(app, settings, on_listening=lambda: logger.info("vae-serve running on %s (Ctrl-C ends it)", url))
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_serve(server, app, sockets))
    abandon()


async def _serve(server: Server, app: FastAPI, sockets: list[socket.socket]) -> None:
    hangup, reload = asyncio.Event(), app.state.reload

    def hang_up() -> None:
        reload.turn.asked(SIGHUP)
        hangup.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)
    reloading = asyncio.create_task(_reload_at(hangup, reload))
    try:
        await server.serve(sockets)
    finally:
        reloading.cancel()


async def _reload_at(hangup: asyncio.Event, reload: Reload) -> None:
    """At every SIGHUP, serve what the settings name as it is by then, if it is proven."""
    while await hangup.wait():
        hangup.clear()
        with suppress(ReloadRefused):  # which the log has told
            await reload.in_turn(None, SIGHUP)
