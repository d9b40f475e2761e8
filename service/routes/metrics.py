"""GET /metrics: what the service counts, for Prometheus. It never touches a queue."""

import asyncio
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from prometheus_client import Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from service.deployment import Deployment
from service.observation.metrics import Metrics
from service.openapi import headers, operation_id

router = APIRouter(tags=["health"], generate_unique_id_function=operation_id)

# Looked up once: it stands in a file.
_VERSION = version("vaeserve")

_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/plain": {"schema": {"type": "string"}}},
        "description": "Prometheus' text format",
        "headers": headers({"Cache-Control": "`no-store`"}),
    }
}


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", responses=_ANSWER, response_model=None, response_class=Response)
async def metrics(request: Request) -> Response:
    """What all processes of the service have counted, in Prometheus' text format."""
    state = request.app.state
    # Some hundred lines take longer than the event loop may be kept.
    text = await asyncio.to_thread(_text, state.deployment, state.metrics)
    return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4, "cache-control": "no-store"})


def _text(deployment: Deployment, counted: Metrics) -> bytes:
    return generate_latest(_Scrape([*_identity(deployment), *counted.families()]))


def _identity(deployment: Deployment) -> Iterator[Metric]:
    """What serves: the service's version, and the models, each with where and how it runs."""
    build = GaugeMetricFamily("vaeserve_build_info", "The service's version.", labels=["version"])
    build.add_metric([_VERSION], 1)
    yield build
    labels = ["model", "digest", "provider", "precision"]
    models = GaugeMetricFamily("vaeserve_model_info", "Each model that is loaded, and where it runs.", labels=labels)
    for model in deployment.models:
        models.add_metric(
            [model.manifest.name, model.manifest.digest, model.engine.provider, model.engine.precision], 1
        )
    yield models


class _Scrape(Collector):
    """Families that are there already, as prometheus_client takes them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
