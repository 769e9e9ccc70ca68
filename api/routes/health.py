"""Is it alive, and can it work?"""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api.errors import Refused
from api.schemas import Health, Readiness
from api.services import Services, Shared
from core.errors import Fault
from store.database import ping
from store.errors import StorageUnavailable

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health()


@router.get("/readyz")
async def readyz(services: Shared) -> Readiness:
    """The database answers and the storage can be written."""
    faults = await run_in_threadpool(_faults, services)
    if faults:
        raise Refused("not_ready", "this server cannot work now", faults=faults)
    return Readiness()


def _faults(services: Services) -> list[Fault]:
    faults = []
    try:
        ping(services.engine)
    except SQLAlchemyError:
        faults.append(Fault("/database", "the database does not answer"))
    try:
        services.artifacts.ping()
    except StorageUnavailable:
        faults.append(Fault("/storage", "the artifact storage cannot be written"))
    return faults
