"""What the routes work with: settings, database, storage, recipes. One per application, made by `create_app`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import anyio
from fastapi import Depends, Query, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.recipe_files import RecipeFiles
from store.artifacts import ArtifactStore
from store.database import reading
from store.keys import Principal
from store.settings import Settings

Result = TypeVar("Result")


@dataclass(frozen=True)
class Services:
    settings: Settings
    engine: Engine
    artifacts: ArtifactStore
    recipes: RecipeFiles

    async def wait(
        self, request: Request, look: Callable[[Session], Result], done: Callable[[Result], bool], seconds: float
    ) -> Result:
        """What `look` finds, as soon as it is `done` or the time is up.

        Between two looks neither a connection nor a thread is held, so many requests can wait.
        """
        deadline = time.monotonic() + min(seconds, self.settings.long_poll_seconds)
        pause = self.settings.long_poll_interval_seconds
        while True:
            found = await run_in_threadpool(self.read, look)
            if done(found) or time.monotonic() >= deadline or await request.is_disconnected():
                return found
            await anyio.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(1.2 * pause, 3 * self.settings.long_poll_interval_seconds)  # what takes long can wait

    def read(self, look: Callable[[Session], Result]) -> Result:
        """What `look` finds in a read-only transaction."""
        with reading(self.engine) as session:
            return look(session)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _principal(request: Request) -> Principal:
    # `api.auth` let the request in; a route that it left open must not ask
    principal: Principal = request.scope["billhook.principal"]
    return principal


Shared = Annotated[Services, Depends(_services)]
Caller = Annotated[Principal, Depends(_principal)]
Wait = Annotated[
    float, Query(ge=0, le=600, allow_inf_nan=False, description="seconds to wait for the state to be final")
]
