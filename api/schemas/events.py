"""The event log of a job."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from api.schemas.base import Json, Out, unreadable_is
from store.pulses import Pulse
from store.records import Event, JobState, TerminalState


class EventOut(Out):
    seq: int
    attempt: int | None = Field(description="number of the attempt; null: the service itself")
    name: str
    body: Annotated[Json, unreadable_is({})]
    created_at: datetime

    @classmethod
    def of(cls, event: Event) -> EventOut:
        return cls.model_validate({name: getattr(event, name) for name in cls.model_fields})


class EventPage(Out):
    items: list[EventOut]
    next_after: int | None = Field(description="the `after` of the next page; null: that was all, so far")


class ProgressOut(Out):
    """The data of a stream's `progress`: how far the job is. Not in the log, so it has no number."""

    state: JobState
    stage: str | None
    progress: float = Field(ge=0, le=1)
    eta_seconds: float | None

    @classmethod
    def of(cls, pulse: Pulse) -> ProgressOut:
        return cls.model_validate({name: getattr(pulse, name) for name in cls.model_fields})


class EndOut(Out):
    """The data of a stream's `end`: the job is over, and all its events were sent."""

    state: TerminalState

    @classmethod
    def of(cls, pulse: Pulse) -> EndOut:
        return cls.model_validate({"state": pulse.state})
