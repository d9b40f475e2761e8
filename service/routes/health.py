"""GET /health/live and /health/ready: probes that never touch a queue."""

from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from service import addresses
from service.errors import NotReady
from service.openapi import headers, operation_id, problems
from service.schemas import HealthAnswer


def _unkept(response: Response) -> None:
    """An answer of before says nothing of now."""
    response.headers.update(addresses.UNKEPT)


router = APIRouter(
    prefix="/health", tags=["health"], generate_unique_id_function=operation_id, dependencies=[Depends(_unkept)]
)

_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "Yes", "headers": headers({"Cache-Control": "`no-store`"})}
}


@router.head("/live", include_in_schema=False)
@router.get("/live", responses=_ANSWER | problems(NotReady))
async def live(request: Request) -> HealthAnswer:
    """The process answers, and no run of a graph is stuck in it."""
    if request.app.state.deployment.is_wedged:
        raise NotReady("live: a run of a graph does not end, and this process does soon")
    return HealthAnswer(status="live")


@router.head("/ready", include_in_schema=False)
@router.get("/ready", responses=_ANSWER | problems(NotReady))
async def ready(request: Request) -> HealthAnswer:
    """Every model passed its probe and is warm, and nobody told this process to end; the port opens no earlier."""
    if request.app.state.draining:
        raise NotReady("ready: this process was told to end and soon closes its port")
    return HealthAnswer(status="ready")
