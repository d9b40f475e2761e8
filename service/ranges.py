"""Ranges are not served: who asks for a part of a file gets all of it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class WithoutRanges:
    """ASGI middleware that lets nobody see a range. Of one that it cannot read or satisfy, the framework says so in a
    text of its own instead of a problem document, and no file here is so large that its parts are worth asking for.

    Source:  RFC 9110, section 14.2: a server may ignore ranges
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, without the range that it asks for; its answer offers none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headers"] = _without(b"range", scope["headers"])

        async def send_whole(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _without(b"accept-ranges", message["headers"])
            await send(message)

        await self._app(scope, receive, send_whole)


def _without(name: bytes, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [header for header in headers if header[0] != name]
