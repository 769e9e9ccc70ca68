"""The application: `create_app(settings)`, and `app` for `uvicorn api.app:app`, made when it is first asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import structlog
from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

from api import errors, openapi
from api.auth import OPEN_PATHS, Authentication
from api.parameters import refuse_unknown
from api.recipe_files import RecipeFiles
from api.request_log import RequestLog, configure_logging
from api.routes import artifacts, datasets, health, jobs, models, recipes
from api.services import Services
from api.uploads import remove_stale
from store.artifacts import ArtifactStore
from store.database import connect
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
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    for routes in (models, datasets, recipes, jobs, artifacts, health):
        app.include_router(routes.router, dependencies=[Depends(refuse_unknown)])
    errors.install(app)
    openapi.install(app, OPEN_PATHS)
    # the last one added is the outermost
    app.add_middleware(Authentication, services=services)
    app.add_middleware(RequestLog)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    await run_in_threadpool(remove_stale, services.settings)
    sweeping = asyncio.create_task(_sweep_now_and_then(services))
    yield
    sweeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sweeping
    services.engine.dispose()


async def _sweep_now_and_then(services: Services) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            removed = await run_in_threadpool(sweep, services.engine, services.artifacts)
            log.info("swept", removed=removed)
        except Exception as error:  # the next round may fare better; the service goes on
            log.error("sweeping failed", exc_info=error)


def __getattr__(name: str) -> Any:
    if name == "app":
        globals()["app"] = create_app()
        return globals()["app"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
