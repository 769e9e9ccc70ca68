"""A worker process: one Celery consumer with one slot, the relay and the reaper.

The pool is one thread. A task only watches a child process: it waits for a pipe, a clock and the database, so a pool of
processes would add a fork (with its copies of connections and locks) for nothing, and the `solo` pool would keep the
main thread from answering signals and broker heartbeats for as long as a job runs.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from celery import signals
from celery.exceptions import WorkerShutdown
from sqlalchemy.exc import SQLAlchemyError

from store import migrate
from store.errors import SchemaMismatch
from worker.app import Ringer, make_app, queue_named
from worker.broker_log import log_outages_once
from worker.context import Context
from worker.environment import application_version
from worker.loops import start_loops
from worker.tasks import add_tasks
from worker.workdir import remove_abandoned

WAKE_SECONDS = 0.5

log = structlog.get_logger("billhook.worker")


def serve(context: Context, queues: Sequence[str]) -> int:
    """Consume `queues` until SIGTERM or SIGINT; the exit status: 0 told to stop, 1 the database cannot be used.

    Waits for a database that is not there or not migrated yet, a minute at most. A broker that is away, now or later,
    is waited for as long as it takes: the job that is running does not need it. A signal ends the running child, gives
    its job back to be claimed by another worker at once, and ends this process.
    """
    if sys.platform != "linux":
        raise SystemExit("a worker runs on Linux only: it needs /proc and a kernel that ends a child with its parent")
    if (status := _without_schema(context)) is not None:
        return status
    for name in remove_abandoned(context.work_root):
        log.info("removed an abandoned work folder", name=name)
    app = make_app(context.settings)
    add_tasks(app, context)
    app.conf.task_queues = [queue_named(context.settings, name) for name in queues]

    def stop(**_: Any) -> None:
        """Runs in the signal handler. Celery would raise this too, but only when its loop wakes from its wait."""
        if not context.stopping.is_set():
            context.stopping.set()
            raise WorkerShutdown(0)

    signals.worker_shutting_down.connect(stop, weak=False)  # type: ignore[no-untyped-call]
    ring = Ringer(make_app(context.settings), context.settings)  # its own connection: the consumer's is not shared
    log_outages_once()
    context.presence.enter(context.name, queues, context.device_of(queues), application_version())
    loops = start_loops(context, ring)
    log.info("worker started", queues=list(queues), broker=context.settings.broker_url.split(":")[0])
    worker = app.Worker(
        hostname=f"billhook@{context.name}", pool="threads", concurrency=1, loglevel=context.settings.log_level.upper(),
        without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True,
    )  # fmt: skip
    # a signal that reaches another thread does not wake the loop; this does, and it looks whether it is to stop
    worker.timer.call_repeatedly(WAKE_SECONDS, lambda: None)
    try:
        worker.start()
    finally:
        context.stopping.set()
        for loop in loops:
            loop.join(timeout=5)
        ring.close()
        context.presence.leave()
        signals.worker_shutting_down.disconnect(stop)  # type: ignore[no-untyped-call]
        context.engine.dispose()
    log.info("worker ended")
    return int(worker.exitcode or 0)


def _without_schema(context: Context) -> int | None:
    """The status to end with where the database cannot be used, or a signal came before it could be; else None."""
    try:
        with _stopped_by_signals(context.stopping):
            if migrate.wait_until_current(context.engine, context.stopping):
                return None
        return 0
    except SchemaMismatch as error:
        log.error("the worker cannot start", reason=error.message)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        log.error("the worker cannot start", reason=f"the database cannot be used: {reason}")
    return 1


@contextmanager
def _stopped_by_signals(stopping: threading.Event) -> Iterator[None]:
    """Celery takes the signals over once it runs; until then they only set `stopping`."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: stopping.set()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
