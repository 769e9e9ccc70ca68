"""Why a dataset cannot be had from where its URI says. No message holds a query, a header, or a path that was not
asked for."""

from __future__ import annotations

from core.errors import BillhookError
from worker.guard import Order


class SourceError(BillhookError):
    """The root."""

    code = "source_refused"


class SourceRefused(SourceError):
    """It is not allowed, or not what is taken: a redirect, a private address, a link, a device."""


class SourceNotFound(SourceError):
    """There is nothing there."""

    code = "source_not_found"


class SourceUnavailable(SourceError):
    """It could not be reached, or broke off again and again. Posted again, it is tried again."""

    code = "source_unavailable"


class SourceTooLarge(SourceError):
    """Past the largest dataset that is taken."""

    code = "source_too_large"


class ChecksumMismatch(SourceError):
    """What is there is not what it was said to be."""

    code = "checksum_mismatch"


class StorageFull(SourceError):
    """It does not fit on the worker's disk."""

    code = "storage_full"


class Interrupted(Exception):
    """One try broke off; the next one may go on. `restart`: from the first byte."""

    def __init__(self, message: str, *, restart: bool = False) -> None:
        super().__init__(message)
        self.restart = restart


class Stopped(Exception):
    """The fetch is not wanted any more, or not here."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self.order = order
