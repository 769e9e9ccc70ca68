"""Dry runs that are not answered yet."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from api.schemas.base import Out
from store.records import DryRun


class DryRunLinks(Out):
    self: str = Field(description="where the answer will be; ask within a minute, or it is forgotten")


class DryRunOut(Out):
    """A dry run that takes longer than it was waited for."""

    id: str
    state: Literal["queued", "running"]
    created_at: datetime
    links: DryRunLinks

    @classmethod
    def of(cls, dry_run: DryRun) -> DryRunOut:
        """Of one that is not answered."""
        here = DryRunLinks(self=f"/v1/dry-runs/{dry_run.id}")
        return cls(
            id=dry_run.id, state="running" if dry_run.state == "running" else "queued", created_at=dry_run.created_at,
            links=here,
        )  # fmt: skip
