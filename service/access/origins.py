"""Pages of other sites that may ask (CORS): those that the operator names, no other."""

from collections.abc import Collection

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Every page there is.
ANY = "*"

_Headers = list[tuple[bytes, bytes]]

# To caches: the answer depends on who asked.
_VARY = (b"vary", b"Origin")

# What a page may see of an answer, and what it may send, beyond what browsers let every page see and send.
_SEEN: _Headers = [
    (
        b"access-control-expose-headers",
        b"allow, etag, retry-after, server-timing, www-authenticate, x-dims, x-model, x-request-id, x-seed, x-warnings",
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
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, its answer marked for the page that may read it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"])
        origin = sent.get(b"origin", b"")
        marked = marks(self._origins, origin)
        is_asked_ahead = scope["method"] == "OPTIONS" and b"access-control-request-method" in sent
        if is_asked_ahead and _is_allowed(self._origins, origin):
            response = Response(status_code=204)
            response.raw_headers += marked + _SENT
            await response(scope, receive, send)
            return

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *marked]
            await send(message)

        await self._app(scope, receive, send_marked)


def marks(origins: Collection[str], origin: bytes) -> _Headers:
    """What an answer says of whether the page of this origin may read it. That it depends on who asked is said where no
    page did too, whose origin is empty.
    """
    if ANY in origins:
        return [(b"access-control-allow-origin", b"*"), *_SEEN]
    if not _is_allowed(origins, origin):
        return [_VARY]
    return [(b"access-control-allow-origin", origin), _VARY, *_SEEN]


def _is_allowed(origins: Collection[str], origin: bytes) -> bool:
    return ANY in origins or origin.decode("latin-1") in origins
