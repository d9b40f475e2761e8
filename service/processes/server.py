"""One process that serves, from its first answer until it has finished what it accepted."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import uvicorn
from fastapi import FastAPI

from service.http.connections import Connections
from service.http.protocol import Protocol
from service.observation import logs
from service.processes import ports, signals
from service.settings import Settings

_CLOSE = (b"connection", b"close")

# Of the time that it has to leave, what a process keeps for its own end when requests have taken the rest.
_CLOSING_S = 1


class Server(uvicorn.Server):
    """uvicorn's server, which leaves in steps: it says that it is not ready and serves on for a while, with
    `Connection: close`; then the port closes, and what was accepted is finished.

    Raises:  BadAddress, by `serve` and `run`, if another process listens on the port by then
    """

    def __init__(self, app: FastAPI, settings: Settings, *, on_listening: Callable[[], None]) -> None:
        connections = Connections(settings, on_refusal=app.state.metrics.refused)
        super().__init__(
            uvicorn.Config(
                app,
                http=cast("type[Protocol]", partial(Protocol, connections=connections)),
                ws="none",
                host=settings.host,
                port=settings.port,
                log_level=settings.log_level,
                access_log=False,  # ours knows more
                log_config=logs.config(settings),
                server_header=False,
                headers=[("x-content-type-options", "nosniff")],  # browsers take each answer for what it says it is
                proxy_headers=False,
                timeout_graceful_shutdown=settings.shutdown_timeout_s - settings.shutdown_pause_s - _CLOSING_S,
            )
        )
        self._app = app
        self._settings = settings
        self._on_listening = on_listening
        self._leaving = self._is_limited = False

    def leave(self) -> None:
        """Begin to leave. The process ends in time, whatever it is doing."""
        if self._leaving:
            return
        self._leaving = True
        self._app.state.draining = True
        # Of requests that come from now on. Those of a connection that came before hold the list that was.
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        self.config.encoded_headers = [*self.config.encoded_headers, _CLOSE]  # of which uvicorn makes those each second
        for connection in self.server_state.connections:
            if isinstance(connection, Protocol) and connection.is_busy:  # which took its headers before
                connection.shutdown()
        self._limit()
        asyncio.get_running_loop().call_later(self._settings.shutdown_pause_s, self._close_port)

    def release(self) -> None:
        """End each connection with its next answer: callers who keep theirs open would never come to a worker that was
        started after them. All, since those who come anew are spread over all workers.
        """
        for connection in self.server_state.connections:
            if isinstance(connection, Protocol):
                connection.release()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C ask to leave; a second Ctrl-C waits for nobody."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.leave)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        for number in (signal.SIGTERM, signal.SIGINT):
            signals.heed_at_once(number, self._limit)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        for listener in sockets or ():
            try:
                listener.listen(self.config.backlog)  # uvloop does so too, but says nothing if it fails
            except OSError as error:
                raise ports.unavailable(error, host=self._settings.host, port=self._settings.port) from error
        await super().startup(sockets)
        self._on_listening()

    def _limit(self) -> None:
        """Let the process end in time, whatever it is doing."""
        if not self._is_limited:
            self._is_limited = True
            signals.end_within(self._settings.shutdown_timeout_s)

    def _interrupt(self) -> None:
        self.leave()
        signals.end_at(signal.SIGINT)

    def _close_port(self) -> None:
        self.should_exit = True
