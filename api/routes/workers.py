"""The workers of this installation."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api.pages import PageSize, WorkerToken, cut
from api.schemas.workers import WorkerOut, WorkerPage
from api.services import Caller, Shared
from store import workers
from store.columns import now_utc

router = APIRouter(prefix="/v1/workers", tags=["workers"])


@router.get("")
def list_workers(
    services: Shared, caller: Caller, page_size: PageSize = 50, page_token: WorkerToken = None
) -> WorkerPage:
    """The workers that are there, the one that started last first. One that fell silent is shown for an hour more."""

    def look(session: Session) -> WorkerPage:
        found = workers.page(session, before=page_token, limit=page_size + 1)
        shown, token = cut(found, page_size)
        ids = [worker.subject_id for worker in shown if worker.subject_id is not None]
        owned, now = workers.owned(session, caller.owner, ids), now_utc()
        return WorkerPage(items=[WorkerOut.of(worker, now, owned) for worker in shown], next_page_token=token)

    return services.read(look)
