"""The verbs' doors: a request meets its verb by method and path, ahead of FastAPI's own middleware and router."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service import refusals
from service.callers import CallerGone
from service.errors import Problem, unfinished
from service.openapi import VerbRoute

Endpoint = Callable[[Request], Awaitable[Response]]


class Doors:
    """ASGI middleware that calls a verb's endpoint as it is, with the request, for a response. Every other request goes
    on to the application, whose table has the verbs too, for OpenAPI and for what it says of other methods.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[object]) -> None:
        self._app = app
        self._endpoints: dict[tuple[str, str], Endpoint] = {
            (method, route.path): route.endpoint
            for route in routes
            if isinstance(route, VerbRoute)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a caller who has left is answered nothing."""
        endpoint = self._endpoints.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await endpoint(Request(scope, receive))
        except Problem as problem:
            response = refusals.response(problem, scope)
        except (CallerGone, ClientDisconnect):
            return
        except asyncio.CancelledError:
            if not scope["app"].state.draining:
                raise
            response = refusals.response(unfinished(), scope)  # the server takes back what is left at its end
        finally:
            if begun := scope["state"].get("begun"):
                begun.end()
        await response(scope, receive, send)
