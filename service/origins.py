"""Pages of other sites that may ask (CORS): those that the operator names, no other."""

from collections.abc import Collection

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Every page there is.
ANY = "*"

_Headers = list[tuple[bytes, bytes]]

# What a page may see of an answer, and what it may send, beyond what browsers let every page see and send.
_SEEN: _Headers = [
    (
        b"access-control-expose-headers",
        b"etag, retry-after, server-timing, x-dims, x-model, x-request-id, x-seed, x-warnings",
    )
]
_SENT: _Headers = [
    (b"access-control-allow-methods", b"GET, HEAD, POST"),
    (b"access-control-allow-headers", b"authorization, content-type, if-none-match, x-request-id, x-timeout-ms"),
    (b"access-control-max-age", b"600"),  # seconds that a browser need not ask again
]


class Origins:
    """ASGI middleware that tells browsers whether a page may read an answer. What a browser asks ahead of a page's
    request is answered here, as it can show no key; where the page may not ask, it goes on like every other request.

    Source:  the Fetch standard, section 3.3 (CORS protocol)
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, its answer marked for the page that may read it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"])
        told = self._told(sent.get(b"origin"))
        is_allowed = told[0][0] == b"access-control-allow-origin"
        if is_allowed and scope["method"] == "OPTIONS" and b"access-control-request-method" in sent:
            response = Response(status_code=204)
            response.raw_headers += told + _SENT
            await response(scope, receive, send)
            return

        async def send_told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *told, *(_SEEN if is_allowed else ())]
            await send(message)

        await self._app(scope, receive, send_told)

    def _told(self, origin: bytes | None) -> _Headers:
        """Who may read the answer. A cache must know that this hangs on who asked, where nobody did too."""
        if ANY.encode() in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        allowed = [(b"access-control-allow-origin", origin)] if origin is not None and origin in self._origins else []
        return [*allowed, (b"vary", b"Origin")]
