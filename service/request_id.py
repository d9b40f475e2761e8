"""Every answer carries `X-Request-ID`: the caller's own where it sent one, else one made here."""

import re
from random import getrandbits

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
_ACCEPTED = re.compile(rb"[\x21-\x7e]{1,128}")


def give(scope: Scope) -> bytes:
    """The id of a request, which is from now on in its `request.state.request_id`; one that was sent and is long or not
    plain text is replaced.
    """
    request_id = b"%032x" % getrandbits(128)  # a name, not a secret
    for name, value in scope["headers"]:
        if name == HEADER:
            request_id = value if _ACCEPTED.fullmatch(value) else request_id
            break
    scope.setdefault("state", {})["request_id"] = request_id.decode("ascii")
    return request_id


class RequestId:
    """ASGI middleware that gives each request its id and puts it onto the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = give(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER, request_id)]
            await send(message)

        await self.app(scope, receive, send_with_id)
