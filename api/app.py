"""The application: `create_app(settings)`, and `app` for `uvicorn api.app:app`, made when it is first asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

from api import docs_page, errors, openapi
from api.auth import OPEN_PATHS, Authentication
from api.parameters import refuse_unknown
from api.recipe_files import RecipeFiles
from api.request_log import RequestLog, configure_logging
from api.routes import artifacts, datasets, health, jobs, models, recipes
from api.services import Services
from api.uploads import remove_stale
from store.artifacts import ArtifactStore
from store.database import connect
from store.reaper import Reaper
from store.settings import Settings
from store.sweep import sweep

SWEEP_SECONDS = 3_600
VERSION = "0.1.0"
DESCRIPTION = "Prunes convolutional networks, fine-tunes what is left, and proves the result."
log = structlog.get_logger()


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API on the database and storage of `settings` (default: from the environment). The schema must be there."""
    settings = settings or Settings()
    configure_logging(settings.log_level)
    services = Services(
        settings,
        connect(settings.database_url, pool_size=settings.database_pool_size),
        ArtifactStore(settings.storage_url),
        RecipeFiles(settings.recipes_dir),
    )
    app = FastAPI(
        title="Billhook",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    for routes in (models, datasets, recipes, jobs, artifacts, health):
        app.include_router(routes.router, dependencies=[Depends(refuse_unknown)])
    errors.install(app)
    openapi.install(app, OPEN_PATHS)
    docs_page.install(app)
    # the last one added is the outermost
    app.add_middleware(Authentication, services=services)
    app.add_middleware(RequestLog)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    await run_in_threadpool(remove_stale, services.settings)
    # with no worker alive, somebody must still see that one died: its job is to be cancelled, or to wait in the queue
    reaper = Reaper(services.engine, services.settings.lease_seconds)
    tasks = [
        asyncio.create_task(_repeat("sweep", lambda: sweep(services.engine, services.artifacts), SWEEP_SECONDS)),
        asyncio.create_task(_repeat("reaper", reaper, services.settings.reaper_seconds)),
    ]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    services.engine.dispose()


async def _repeat(name: str, action: Callable[[], object], seconds: float) -> None:
    """Do it now and every so many seconds, in a thread. An error is logged, once for as long as it lasts."""
    failing = None
    while True:
        try:
            await run_in_threadpool(action)
        except Exception as error:  # the next round may fare better; the service goes on
            if failing is not type(error):
                log.error(f"{name} failed; it goes on trying", exc_info=error)
            failing = type(error)
        else:
            failing = None
        await asyncio.sleep(seconds)


def __getattr__(name: str) -> Any:
    if name == "app":
        globals()["app"] = create_app()
        return globals()["app"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
