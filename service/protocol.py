"""HTTP/1.1 on a connection: uvicorn's, whose answers leave in one write."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# What is longer is worth a write of its own; copying or holding it is not.
_HELD_BYTES = 2**16


class Protocol(HttpToolsProtocol):
    """uvicorn writes the head of an answer and then its body, each with a call to the system and, for a client that
    waits, a packet; here the head waits for the body.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection."""
        super().connection_made(cast("asyncio.Transport", Cork(cast("asyncio.Transport", transport))))

    @property
    def is_busy(self) -> bool:
        """Whether a request has come that is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete


class Cork:
    """A transport that holds a first short write until the second, at the latest until this turn of the loop is over.
    All else is the transport's own.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: bytes | None = None
        self._loop = asyncio.get_running_loop()
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write soon, in order."""
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.writelines((held, data))
        elif len(data) <= _HELD_BYTES:
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close once all is written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
