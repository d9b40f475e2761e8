"""Pages for people, in browsers that load and run nothing but what this server sends as files."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service import page_headers

# No script or style stands in a page itself, so that what slips into one is text. Swagger UI draws its icons from data:
# and shows pictures of answers from blob:.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
}
_HEADERS = page_headers.headers(_POLICY) | {"cache-control": "no-cache"}

# Swagger UI's own files come with fastapi-offline, and are mounted beneath.
ASSETS = "/docs/assets"

_DOCS = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>vaeserve</title>
<link rel="icon" href="docs/assets/favicon.png">
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
});
"""


def install(app: FastAPI) -> None:
    """Give an application its pages."""
    app.router.routes[:0] = [
        Route("/docs", _sent(_DOCS, "text/html"), include_in_schema=False),
        Route("/docs/start.js", _sent(_START, "text/javascript"), include_in_schema=False),
    ]


def _sent(content: str, media_type: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def endpoint(_request: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return endpoint
