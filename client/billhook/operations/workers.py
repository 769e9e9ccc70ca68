"""The server's workers."""

from __future__ import annotations

from billhook.operations.listing import pages
from billhook.results import Worker
from billhook.retries import Core
from billhook.steps import Stream


def list_workers(core: Core, *, limit: int | None = None) -> Stream[Worker]:
    """The workers that are there, the one that started last first, and those that fell silent within the last hour."""
    return pages(core, Worker, "/v1/workers", {}, limit)
