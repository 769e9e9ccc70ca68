"""Remove stored bytes that nothing refers to any more: replaced checkpoints, deleted models, failed uploads."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from store import idempotency
from store.artifacts import FRESH, ArtifactStore
from store.columns import now_utc
from store.database import reading, transaction
from store.records import Artifact, Dataset, Model

# `ArtifactStore` relies on an object that is younger than FRESH; there must be time left to record it
GRACE: timedelta = 4 * FRESH


def sweep(engine: Engine, artifacts: ArtifactStore, now: datetime | None = None) -> int:
    """Delete the objects that no record names and that are older than `GRACE`, and old idempotency keys.

    Returns how many objects went, those included that were never stored to the end.
    """
    now = now or now_utc()
    with transaction(engine) as session:
        idempotency.forget(session, now)
    old = [sha256 for sha256, written in artifacts.list_hashes() if now - written > GRACE]
    with reading(engine) as session:  # after the listing: a record made meanwhile is seen
        named = _named(session)
    removed = artifacts.remove_partial(now - GRACE)
    for sha256 in old:
        written = None if sha256 in named else artifacts.written(sha256)
        if written is not None and now - written > GRACE:  # it may have been stored again since the listing
            artifacts.delete(sha256)
            removed += 1
    return removed


def _named(session: Session) -> set[str]:
    columns = (Artifact.sha256, Model.sha256, Model.graph_sha256, Dataset.sha256, Dataset.contact_sheet_sha256)
    return {sha256 for column in columns for sha256 in session.scalars(select(column).distinct()) if sha256 is not None}
