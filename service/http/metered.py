"""A transport that knows how much of what was written the system has taken."""

import asyncio
from typing import Any


class Metered:
    """A transport that counts what is written; all else is its own."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._written_bytes = 0
        self.is_closing = transport.is_closing

    @property
    def taken_bytes(self) -> int:
        """How much has gone on to the system, of all that was written; the other side is about to read it."""
        return self._written_bytes - self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Write soon, in order."""
        self._written_bytes += len(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
