"""What the HTTP server can do at most: the body is read, a constant answer of `/encode`'s size goes out.

Run as `BUNDLE=service/bundles/fashion uvicorn benchmarks.floors:bare`, or `benchmarks.floors:fastapi`.
"""

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response

Message = MutableMapping[str, Any]

_MANIFEST = json.loads((Path(os.environ["BUNDLE"]) / "manifest.json").read_text())
_ROW = [0.123456789 + place for place in range(_MANIFEST["latent_shape"][0])]
CONTENT = json.dumps({"mu": [_ROW], "logvar": [_ROW]}, separators=(",", ":")).encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(CONTENT)).encode())]


async def bare(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """An ASGI application without a framework."""
    if scope["type"] != "http":
        raise NotImplementedError("only requests are answered")  # as ASGI wants it of an application without lifespan
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": CONTENT})


fastapi = FastAPI()


@fastapi.post("/encode")
async def encode(request: Request) -> Response:
    """The constant."""
    await request.body()
    return Response(CONTENT, media_type="application/json")


@fastapi.get("/health/ready")
async def ready() -> dict[str, bool]:
    """Whether the server answers."""
    return {"ready": True}
