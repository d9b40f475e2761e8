"""A response whose body is several buffers, sent one after the other and never joined."""

from collections.abc import Mapping, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# The server waits for the client after each; an event loop that copies what the socket has no room for copies no more.
_SENT_BYTES = 2**20


class Pieces(Response):
    """A response that knows its length and is sent by and by, as the client takes it."""

    def __init__(self, pieces: Sequence[bytes | memoryview], *, media_type: str, headers: Mapping[str, str]) -> None:
        length = str(sum(map(len, pieces)))
        super().__init__(media_type=media_type, headers={**headers, "content-length": length})
        self._pieces = pieces

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in self._pieces:
            for start in range(0, len(piece), _SENT_BYTES):
                part = memoryview(piece)[start : start + _SENT_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
