"""Jobs: what is asked for, and how it goes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, field_validator

from api.schemas.base import Json, Out, Text, unreadable_is
from api.schemas.problems import StoredReason
from api.schemas.recipes import RecipeRequest
from core.sections import Items
from store.records import Attempt, Job, JobState

Tag = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x20\x7f,]+$", max_length=100)]


class JobRequest(RecipeRequest):
    """What to do with which model and dataset."""

    model: str = Field(description="id of a model that is ready", examples=["mdl_…"])
    datasets: Items[str] = Field(min_length=1, max_length=1, description="ids of datasets that are ready")
    name: Annotated[Text, Field(max_length=200)] = Field(
        "", description="text without control characters; may be hierarchical: team/model/try"
    )
    kind: Annotated[Text, Field(min_length=1, max_length=64)] = Field(
        "prune", description="text without control characters"
    )
    tags: Items[Tag] = Field((), max_length=20, description="tags without spaces or commas, 20 at most")

    @field_validator("tags", mode="after")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a tag is there twice")
        return value


class AttemptOut(Out):
    number: int
    host: str
    device: str
    started_at: datetime
    ended_at: datetime | None
    outcome: Literal["succeeded", "failed", "cancelled", "lost", "released"] | None
    error: StoredReason

    @classmethod
    def of(cls, attempt: Attempt) -> AttemptOut:
        return cls.model_validate({name: getattr(attempt, name) for name in cls.model_fields})


class NotFinite(Out):
    """A number that JSON cannot hold (`core.events.jsonable`)."""

    float: Literal["nan", "inf", "-inf"] = Field(alias="$float")


class Results(BaseModel):
    """The report in short."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    ratios: dict[str, float | NotFinite | None] | None = Field(
        None, description="pruned / original; accuracy_drop = original - pruned"
    )
    target_met: bool | None = None
    drop_in: bool | None = None
    requirements_met: bool | None = None


class Links(Out):
    self: str
    events: str
    report: str
    artifacts: str


class JobOut(Out):
    id: str
    name: str
    kind: str
    tags: list[str]
    model: str
    datasets: list[str]
    recipe: Json = Field(description="as it was resolved when the job was submitted")
    requirements: Json
    device: str
    cloned_from: str | None = Field(description="id of the job that this one was made from, by `clone` or `retry`")
    state: JobState
    stage: str | None
    progress: float = Field(ge=0, le=1)
    eta_seconds: float | None
    results: Annotated[Results | None, unreadable_is(None)]
    error: StoredReason
    attempts: list[AttemptOut]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: Links

    @classmethod
    def of(cls, job: Job, attempts: list[Attempt]) -> JobOut:
        here = f"/v1/jobs/{job.id}"
        same = ("id", "name", "kind", "tags", "recipe", "requirements", "device", "cloned_from", "state",
                "stage", "progress",
                "eta_seconds", "results", "error", "created_at", "started_at", "finished_at")  # fmt: skip
        return cls.model_validate(
            {name: getattr(job, name) for name in same}
            | {
                "model": job.model_id,
                "datasets": job.dataset_ids,
                "attempts": [AttemptOut.of(attempt) for attempt in attempts],
                "links": {
                    "self": here,
                    "events": f"{here}/events",
                    "report": f"{here}/report",
                    "artifacts": f"{here}/artifacts",
                },
            }
        )


class JobPage(Out):
    items: list[JobOut]
    next_page_token: str | None
