"""create_app(settings): the routes, the one handler of errors, and the life of the process."""

import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match

from service import openapi, refusals
from service.doors import Doors
from service.errors import Internal, MethodNotAllowed, NotFound, Problem
from service.models import Deployment, deploy
from service.request_id import RequestId
from service.routes import health, latents, models, paths, pictures
from service.settings import Settings

logger = logging.getLogger("vaeserve")

_ROUTERS = (latents.router, pictures.router, paths.router, models.router, health.router)
_DESCRIPTION = "Embeddings, samples and interpolations of variational autoencoders."


def create_app(settings: Settings, *, cores: int | None = None) -> FastAPI:
    """The application, every model loaded, proven and warm. Its graphs share so many cores, by default all that this
    process may use.

    Raises:  BadBundle, BadEngine
    """
    deployment = deploy(settings, cores=cores)
    routes = [route for router in _ROUTERS for route in router.routes]
    app = FastAPIOffline(
        title="vaeserve",
        description=_DESCRIPTION,
        version=version("vaeserve"),
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/assets",
        redirect_slashes=False,
        lifespan=_lifespan,
        middleware=[Middleware(Doors, routes=routes), Middleware(RequestId)],
        telemetry={"tracing": False, "metrics": False, "logs": False},
        exception_handlers={
            Problem: _problem,
            HTTPException: _http_exception,
            Exception: _unforeseen,
        },
    )
    app.state.deployment = deployment
    app.state.draining = False
    # Ahead of the pages that the framework brings, so that a request meets its verb first.
    app.router.routes[:0] = routes
    app.add_api_route("/", _root, methods=["GET", "HEAD"], include_in_schema=False)
    openapi.install(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gc.collect()
    gc.freeze()  # what was loaded by now lives as long as the process; no collection needs to look at it again
    yield
    deployment: Deployment = app.state.deployment
    deployment.lane.close()


async def _root() -> Response:
    return RedirectResponse("/docs")


async def _problem(request: Request, problem: Problem) -> Response:
    return refusals.response(problem, path=request.url.path)


async def _http_exception(request: Request, error: HTTPException) -> Response:
    """The framework's own errors: no such path, no such method."""
    path, method = request.url.path, request.method
    if error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request) or {"GET", "HEAD"}))  # the mounted files of /docs name none
        refused = f"{path}: got {method}, expected {allowed}"
        return refusals.response(MethodNotAllowed(refused, headers={"allow": allowed}), path=path)
    if error.status_code == 404:
        return refusals.response(NotFound(f"{path}: there is no such path, /docs lists those there are"), path=path)
    return await _unforeseen(request, error)


async def _unforeseen(request: Request, error: Exception) -> Response:
    request_id = request.state.request_id
    logger.error("request %s failed: %r", request_id, error)
    problem = Internal(f"The log tells more under request id {request_id}.")
    response = refusals.response(problem, path=request.url.path)
    response.headers["x-request-id"] = request_id  # this answer passes outside the middleware
    return response


def _methods(request: Request) -> set[str]:
    """The methods that a path knows, over all routes that share it."""
    return {
        method
        for route in request.app.routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in getattr(route, "methods", None) or ()
    }
