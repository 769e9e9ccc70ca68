"""Celery's log lines are the service's (`store.logs`)."""

from __future__ import annotations

from celery import signals

from store.logs import configure_logs


def configure_worker_logs(level: str, worker: str) -> None:
    """Configure logging for this process, and keep Celery from doing it again."""
    configure_logs(level, worker=worker)
    signals.setup_logging.connect(_leave_it, weak=False)  # type: ignore[no-untyped-call]


def _leave_it(**_: object) -> None:
    """A receiver of `setup_logging` tells Celery that logging is set up."""
