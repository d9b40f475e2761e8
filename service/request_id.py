"""Every answer carries `X-Request-ID`: the caller's own where it sent one, else one made here."""

import re
from random import getrandbits

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER = b"x-request-id"
_ACCEPTED = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestId:
    """ASGI middleware that puts the id into `request.state.request_id` and onto the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on; ids that are long or not plain text are replaced."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == _HEADER), b"")
        request_id = sent if _ACCEPTED.fullmatch(sent) else b"%032x" % getrandbits(128)  # a name, not a secret
        scope.setdefault("state", {})["request_id"] = request_id.decode("ascii")

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (_HEADER, request_id)]
            await send(message)

        await self.app(scope, receive, send_with_id)
