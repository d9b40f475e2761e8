"""What leaves by connections: counted, and answers that were made in one turn of the loop all at its end."""

import asyncio
from collections.abc import Callable
from typing import Any


class Outbox:
    """The answers of this turn of the loop, on all connections. Who waits for several of them, as a proxy does,
    is woken for the first and finds the others there: waking it costs the system more than writing.
    """

    def __init__(self) -> None:
        self._outgoing: list[Outgoing] = []

    def add(self, outgoing: "Outgoing") -> None:
        """Send what is posted there once everything that is ready to run has run."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._send)
        self._outgoing.append(outgoing)

    def _send(self) -> None:
        posted, self._outgoing = self._outgoing, []
        for outgoing in posted:
            outgoing.send()


class Outgoing:
    """A transport that counts what is written, holds what is posted, and asks before it closes whether the other side
    is heard out instead; all else is its own.
    """

    def __init__(self, transport: asyncio.Transport, outbox: Outbox, *, hears_out: Callable[[], bool]) -> None:
        self._transport = transport
        self._outbox = outbox
        self._hears_out = hears_out
        self._posted = b""
        self._written_bytes = 0
        self.is_closing = transport.is_closing

    @property
    def taken_bytes(self) -> int:
        """How much has gone on to the system, of all that was written; the other side is about to read it."""
        return self._written_bytes - self._transport.get_write_buffer_size()

    @property
    def is_empty(self) -> bool:
        """Whether all that was posted and written has gone on to the system."""
        return not self._posted and not self._transport.get_write_buffer_size()

    def post(self, data: bytes) -> None:
        """Write when this turn of the loop is over, or before anything else is written."""
        if not self._posted:
            self._outbox.add(self)
        self._posted += data

    def send(self) -> None:
        """Write what is posted, unless the connection has been lost since."""
        data, self._posted = self._posted, b""
        if data and not self.is_closing():
            self._written_bytes += len(data)
            self._transport.write(data)

    def write(self, data: bytes) -> None:
        """Write soon, in order."""
        self.send()
        self._written_bytes += len(data)
        self._transport.write(data)

    def write_eof(self) -> None:
        """Say that nothing follows, once all is written."""
        self.send()
        self._transport.write_eof()

    def close(self) -> None:
        """Close once all is written, or once the other side has been heard out."""
        self.send()
        if not self._hears_out():
            self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
