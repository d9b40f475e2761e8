"""create_app(settings): the routes, the handlers of errors, and the life of the process."""

import asyncio
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
from starlette.routing import Match, Route

from service import openapi, pages, refusals
from service.access import origins
from service.access.gate import Gate
from service.access.keys import Keys
from service.deployment import Deployment, deploy
from service.doors import Doors
from service.errors import Internal, MethodNotAllowed, NotFound, Problem
from service.observation import record, traces
from service.observation.access_log import AccessLog
from service.observation.metrics import Metrics
from service.observation.observed import Observed
from service.observation.tally import Tally
from service.observation.traces import Traces
from service.ranges import WithoutRanges
from service.reload import Reload
from service.routes import health, latents, metrics, models, paths, pictures
from service.settings import Settings
from service.watch import watch

logger = logging.getLogger("vaeserve")

# Objects made and not yet freed that begin a collection.
_COLLECT_EVERY = 20_000

_ROUTERS = (latents.router, pictures.router, paths.router, models.router, health.router, metrics.router)
_DESCRIPTION = "Embeddings, samples and interpolations of variational autoencoders."


def create_app(settings: Settings, *, cores: int | None = None, tally: Tally | None = None) -> FastAPI:
    """The application, every model loaded, proven and warm. Its graphs share so many cores, by default all that this
    process may use. It counts in `tally`, by default for itself.

    Raises:  BadBundle, BadEngine, BadKeys
    """
    keys = Keys(settings.api_keys_file, workers=settings.workers) if settings.api_keys_file else None
    guards = _guards(settings, keys)
    tracing = Traces() if settings.traces else None
    routes = [route for router in _ROUTERS for route in router.routes]
    app = FastAPIOffline(
        title="vaeserve",
        description=_DESCRIPTION,
        version=version("vaeserve"),
        docs_url=None,
        redoc_url=None,
        static_url=pages.ASSETS,
        redirect_slashes=False,
        lifespan=_lifespan,
        middleware=[*guards, Middleware(Doors, routes=routes), Middleware(WithoutRanges)],
        telemetry=tracing.telemetry if tracing else traces.OFF,
        exception_handlers={
            Problem: _problem,
            HTTPException: _http_exception,
            Exception: _unforeseen,
        },
    )
    app.state.draining = False
    app.state.keys = keys
    # Ahead of the pages that the framework brings, so that the table of methods below has verbs first.
    app.router.routes[:0] = routes
    app.add_api_route("/", _root, methods=["GET", "HEAD"], include_in_schema=False)
    pages.install(app)
    openapi.install(app, keyed=settings.is_keyed, metrics_open=settings.open_metrics)
    table = [route for route in app.routes if isinstance(route, Route)]
    app.state.metrics = Metrics([route.path for route in table], tally=tally, workers=settings.workers)
    app.state.traces = tracing
    app.state.deployment = deploy(settings, metrics=app.state.metrics, cores=cores)
    app.state.reload = Reload(app.state)
    app.state.access_log = _access_log(settings)
    app.add_middleware(
        Observed,
        routes=table,
        metrics=app.state.metrics,
        access_log=app.state.access_log,
        traces=tracing,
    )
    return app


def _guards(settings: Settings, keys: Keys | None) -> list[Middleware]:
    """Who may ask at all, as far as the settings say."""
    guards = []
    if settings.cors_origins:
        guards.append(Middleware(origins.Origins, origins=settings.cors_origins))
    if keys:
        guards.append(Middleware(Gate, keys=keys, metrics_open=settings.open_metrics))
    return guards


def _access_log(settings: Settings) -> AccessLog | None:
    """The log of requests, where one is asked for; other workers write to the same output."""
    if not settings.access_log:
        return None
    return AccessLog(settings.log_format, is_shared=settings.workers != 1)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gc.collect()
    gc.freeze()  # what was loaded by now lives as long as the process; no collection needs to look at it again
    gc.set_threshold(_COLLECT_EVERY)  # a request leaves hardly a cycle behind, and makes hundreds of objects
    watching = [asyncio.create_task(watch(lambda: app.state.deployment))]
    if app.state.keys:
        watching.append(asyncio.create_task(app.state.keys.watch()))
    app.state.metrics.serving(app.state.deployment.models.labels)
    yield
    for task in watching:
        task.cancel()
    deployment: Deployment = app.state.deployment
    await asyncio.to_thread(deployment.lane.close)  # a run may take a while, and the last answers have yet to leave
    if app.state.access_log:
        await asyncio.to_thread(app.state.access_log.close)
    if app.state.traces:
        await app.state.traces.close()


async def _root() -> Response:
    return RedirectResponse("docs")  # of whatever it stands behind


async def _problem(request: Request, problem: Problem) -> Response:
    return refusals.response(problem, request.scope)


async def _http_exception(request: Request, error: HTTPException) -> Response:
    """The framework's own errors: no such path, no such method."""
    path, method = request.scope["path"], request.method
    if error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request) or {"GET", "HEAD"}))  # the mounted files of /docs name none
        refused = f"{path}: got {method}, expected {allowed}"
        return refusals.response(MethodNotAllowed(refused, headers={"allow": allowed}), request.scope)
    if error.status_code == 404:
        return refusals.response(NotFound(f"{path}: there is no such path, /docs lists those there are"), request.scope)
    return _failed(request, error)


async def _unforeseen(request: Request, error: Exception) -> Response:
    """The answer to what no handler knows, which passes outside all middleware of ours."""
    response = _failed(request, error)
    response.headers["x-request-id"] = record.of(request.scope).request_id
    response.headers["connection"] = "close"  # which the server does once it has logged the error
    if allowed := request.app.state.deployment.settings.cors_origins:
        response.raw_headers += origins.marks(allowed, dict(request.scope["headers"]).get(b"origin", b""))
    return response


def _failed(request: Request, error: Exception) -> Response:
    request_id = record.of(request.scope).request_id
    logger.error("request %s failed: %r", request_id, error)
    return refusals.response(Internal(f"The log tells more under request id {request_id}."), request.scope)


def _methods(request: Request) -> set[str]:
    """The methods that a path knows, over all routes that share it."""
    return {
        method
        for route in request.app.routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in getattr(route, "methods", None) or ()
    }
