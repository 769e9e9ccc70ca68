"""What the routes work with: settings, database, storage, recipes. One per application, made by `create_app`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.hub import Hub
from api.known_keys import KnownKeys
from api.metrics import Metrics
from api.readiness import Readiness
from api.recipe_files import RecipeFiles
from api.spool import Spool
from store.artifacts import ArtifactStore
from store.database import reading
from store.keys import Principal
from store.pulses import Pulse
from store.settings import Settings

Result = TypeVar("Result")
CONNECTED_SECONDS = 1.0  # how often it is asked whether the one who waits is still there


@dataclass(frozen=True)
class Services:
    settings: Settings
    engine: Engine
    artifacts: ArtifactStore
    recipes: RecipeFiles
    readiness: Readiness
    metrics: Metrics
    spool: Spool
    hub: Hub
    known_keys: KnownKeys

    async def wait(
        self, request: Request, subject_id: str, look: Callable[[Session], Result], done: Callable[[Result], bool],
        worth_it: Callable[[Pulse], bool], seconds: float,
    ) -> Result:  # fmt: skip
        """What `look` finds, as soon as it is `done` or the time is up. `subject_id` is the job, model or dataset that
        it is about, whose pulse says whether it is `worth_it` to look again.

        Those who wait are looked after together (`api/hub.py`): meanwhile neither a connection nor a thread is held.
        """
        deadline = time.monotonic() + min(seconds, self.settings.long_poll_seconds)
        found = await run_in_threadpool(self.read, look)
        if seconds == 0 or done(found):
            return found
        with self.hub.watch(subject_id, key_id=request.scope["billhook.principal"].key_id) as watch:
            while not done(found) and not watch.ended and time.monotonic() < deadline:
                while not watch.ended and (left := deadline - time.monotonic()) > 0:
                    news = await watch.news(min(left, CONNECTED_SECONDS))
                    if news and watch.pulse is not None and worth_it(watch.pulse):
                        break
                    if not news and await request.is_disconnected():
                        return found
                found = await run_in_threadpool(self.read, look)
        return found

    def read(self, look: Callable[[Session], Result]) -> Result:
        """What `look` finds in a read-only transaction."""
        with reading(self.engine) as session:
            return look(session)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _principal(request: Request) -> Principal:
    # `api.auth` let the request in; a route that it left open must not ask
    principal: Principal = request.scope["billhook.principal"]
    return principal


Shared = Annotated[Services, Depends(_services)]
Caller = Annotated[Principal, Depends(_principal)]
Wait = Annotated[
    float, Query(ge=0, le=600, allow_inf_nan=False, description="seconds to wait for the state to be final")
]
