"""The application: `create_app(settings)`, and `app` for `uvicorn api.app:app`, made when it is first asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from fastapi import Depends, FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api import docs_page, errors, openapi
from api.auth import OPEN_PATHS, Authentication, KeyUse
from api.head import Head
from api.hub import Hub
from api.known_keys import KnownKeys
from api.metrics import Metrics
from api.parameters import refuse_unknown
from api.readiness import Pulses, Readiness
from api.recipe_files import RecipeFiles
from api.request_log import RequestLog
from api.routes import artifacts, datasets, dry_runs, events, health, jobs, keys, models, recipes, workers
from api.services import Services
from api.spool import Spool
from store.artifacts import ArtifactStore
from store.database import connect
from store.logs import configure_logs
from store.reaper import Reaper
from store.settings import Settings
from store.sweep import sweep

SWEEP_SECONDS = 3_600
PATIENCE_SECONDS = 30.0  # a round of a loop may take so long
KEY_USE_SECONDS = 600
VERSION = "0.1.0"
DESCRIPTION = "Prunes convolutional networks, fine-tunes what is left, and proves the result."
log = structlog.get_logger()


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API on the database and storage of `settings` (default: from the environment). The schema must be there."""
    settings = settings or Settings()
    configure_logs(settings.log_level)
    engine = connect(settings.database_url, pool_size=settings.database_pool_size)
    storage = ArtifactStore(settings.storage_url)
    services = Services(
        settings,
        engine,
        storage,
        RecipeFiles(settings.recipes_dir),
        Readiness(settings, storage),
        Metrics(settings),
        Spool(settings, storage),
        Hub(engine, settings.watch_seconds, settings.key_seconds),
        KnownKeys(settings.key_seconds),
    )
    app = FastAPI(
        title="Billhook",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=_lifespan,
        openapi_url=None,  # api/openapi.py adds it
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    app.state.key_use = KeyUse()
    for routes in (models, datasets, recipes, jobs, events, dry_runs, artifacts, keys, workers, health):
        app.include_router(routes.router, dependencies=[Depends(refuse_unknown)])
    errors.install(app)
    openapi.install(app, OPEN_PATHS)
    docs_page.install(app)
    # the last one added is the outermost
    app.add_middleware(Authentication, services=services, key_use=app.state.key_use)
    app.add_middleware(Head)
    app.add_middleware(RequestLog, metrics=services.metrics)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    key_use: KeyUse = app.state.key_use
    await run_in_threadpool(services.spool.remove_abandoned)
    # with no worker alive, somebody must still see that one died: its job is to be cancelled, or to wait in the queue
    reaper = Reaper(services.engine, services.settings.lease_seconds)
    pulses = services.readiness.pulses

    def sweeping() -> None:
        services.spool.remove_abandoned()  # of another server on the same folder, too
        sweep(services.engine, services.artifacts)

    def note_use() -> None:
        key_use.write(services.engine)

    tasks = [
        asyncio.create_task(_repeat(pulses, "sweep", sweeping, SWEEP_SECONDS)),
        asyncio.create_task(_repeat(pulses, "reaper", reaper, services.settings.reaper_seconds)),
        asyncio.create_task(_repeat(pulses, "noting which keys are used", note_use, KEY_USE_SECONDS)),
    ]
    yield
    services.hub.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with contextlib.suppress(SQLAlchemyError):  # it is worth a try, and nothing more
        await run_in_threadpool(note_use)
    services.engine.dispose()


async def _repeat(pulses: Pulses, name: str, action: Callable[[], object], seconds: float) -> None:
    """Do it now and every so many seconds, in a thread. An error is logged, once for as long as it lasts."""
    failing = None
    pulses.expect(name, 2 * seconds + PATIENCE_SECONDS)
    while True:
        try:
            await run_in_threadpool(action)
        except Exception as error:  # the next round may fare better; the service goes on
            if failing is not type(error):
                log.error(f"{name} failed; it goes on trying", exc_info=error)
            failing = type(error)
        else:
            failing = None
            pulses.beat(name)
        await asyncio.sleep(seconds)


def __getattr__(name: str) -> Any:
    if name == "app":
        globals()["app"] = create_app()
        return globals()["app"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
