"""Answers that come whole leave as one piece of HTTP; all others are uvicorn's to write."""

from collections.abc import Awaitable

from uvicorn._types import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    Scope,
)
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.http.outgoing import Outgoing

# A longer body is worth a write of its own; copying it is not.
_MOST_BYTES = 2**17

# What no header may hold; two of them end a line.
_CONTROLS = bytes([*range(9), *range(10, 32), 127])

# Answers without a body, whatever their head says.
_BODILESS = frozenset({204, 304})


class Answering:
    """An application for one request. The head of its answer waits for the body, so that both leave in one write. Where
    nothing follows from the head but that it is sent, it is not looked through header by header.
    """

    __slots__ = ("_app", "_cycle", "_outgoing", "_start")

    def __init__(self, app: ASGI3Application, cycle: RequestResponseCycle, outgoing: Outgoing) -> None:
        self._app = app
        self._cycle = cycle
        self._outgoing = outgoing
        self._start: HTTPResponseStartEvent | None = None

    def __call__(self, scope: Scope, receive: ASGIReceiveCallable, _send: ASGISendCallable) -> Awaitable[None]:
        """Answer the request."""
        return self._app(scope, receive, self._send)

    async def _send(self, message: ASGISendEvent) -> None:
        cycle, start = self._cycle, self._start
        if start is None and message["type"] == "http.response.start" and not cycle.response_started:
            self._start = message
            return
        self._start = None
        answer = _whole(start, message, cycle) if start and message["type"] == "http.response.body" else None
        if answer is None:
            if start:
                await cycle.send(start)
            await cycle.send(message)
            return
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        self._outgoing.post(answer)
        cycle.response_complete = True
        cycle.message_event.set()
        cycle.on_response()


def _whole(start: HTTPResponseStartEvent, end: HTTPResponseBodyEvent, cycle: RequestResponseCycle) -> bytes | None:
    """The bytes of an answer that is all there and of the length that it says, on a connection that stays; else None.

    Source:  RFC 9112, sections 4 to 6
    """
    if end.get("more_body") or not cycle.keep_alive or cycle.disconnected or cycle.flow.write_paused:
        return None
    body = end.get("body", b"")
    headers = [*cycle.default_headers, *start.get("headers", ())]
    named = dict(headers)
    if (
        len(body) > _MOST_BYTES
        or len(named) < len(headers)
        or named.get(b"content-length") != b"%d" % len(body)
        or b"connection" in named
        or b"transfer-encoding" in named
        or start["status"] in _BODILESS
        or cycle.scope["method"] == "HEAD"
    ):
        return None
    lines = b"\r\n".join([b": ".join(header) for header in headers])
    if len(lines) - len(lines.translate(None, _CONTROLS)) != 2 * (len(headers) - 1):
        return None  # more than ends of lines: a header that could be read as two, which uvicorn refuses
    return b"".join((STATUS_LINE[start["status"]], lines, b"\r\n\r\n", body))
