"""A transport whose short writes wait for the next, so that the head of an answer and its body leave together."""

import asyncio
from typing import Any

# What is longer is worth a write of its own; copying or holding it is not.
_HELD_BYTES = 2**16


class Cork:
    """A transport that holds a first short write until the second, at the latest until this turn of the loop is over.
    `taken_bytes` are those that have gone on to the system, and the other side is about to read. All else is the
    transport's own.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: bytes | None = None
        self._written = 0
        self._loop = asyncio.get_running_loop()
        self.is_closing = transport.is_closing

    @property
    def taken_bytes(self) -> int:
        """How much the system has taken of all that was written."""
        return self._written - self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Write soon, in order."""
        self._written += len(data)
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.writelines((held, data))
        elif len(data) <= _HELD_BYTES:
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def write_eof(self) -> None:
        """Say that nothing follows, once all is written."""
        self._flush()
        self._transport.write_eof()

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
