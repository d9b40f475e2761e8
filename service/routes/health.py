"""GET /health/live and /health/ready: probes that never touch a queue."""

from fastapi import APIRouter

from service.schemas import HealthAnswer

router = APIRouter(prefix="/health", tags=["health"])


@router.head("/live", include_in_schema=False)
@router.get("/live")
async def live() -> HealthAnswer:
    """The process answers."""
    return HealthAnswer(status="live")


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready() -> HealthAnswer:
    """Every model passed its probe and is warm; the port opens no earlier."""
    return HealthAnswer(status="ready")
