"""Is it alive, can it work, and what is it doing?"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from api.errors import Refused
from api.openapi import METRICS_ANSWERS
from api.schemas.health import CheckOut, Health, ReadinessOut
from api.services import Shared
from core.errors import Fault

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health()


@router.get("/readyz")
async def readyz(services: Shared) -> ReadinessOut:
    """Whether this process can work: 503 where the database or the storage is away. Answered within two seconds."""
    checks = await services.readiness.checks()
    faults = [
        Fault(f"/{check.name}", f"the {check.name} {check.detail}") for check in checks if check.state == "failed"
    ]
    if faults:
        raise Refused("not_ready", "this server cannot work now", faults=faults)
    status = "degraded" if any(check.state == "degraded" for check in checks) else "ready"
    shown = [CheckOut(name=check.name, state=check.state, detail=check.detail) for check in checks]
    return ReadinessOut(status=status, checks=shown)


@router.get("/metrics", response_class=PlainTextResponse, responses=METRICS_ANSWERS)
async def metrics(request: Request, services: Shared) -> Response:
    """Prometheus' metrics: of the service from its database, the same from every server, and of this process. Needs a
    key with the scope `metrics`."""
    body, media_type = await services.metrics.page(request.headers.get("accept", ""))
    return Response(body, media_type=media_type)
