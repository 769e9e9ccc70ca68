"""What goes in and out as JSON. `api/openapi.py` describes the bodies that the routes read themselves."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

import structlog
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from core.job import Columns, DatasetFormat, Preprocess, Splits
from core.recipe import Recipe
from core.requirements import Requirements
from core.sections import Items
from store.records import Artifact, Attempt, Dataset, Event, Job, JobState, Model, UploadState
from store.sources import MAX_URI, SCHEMES

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]
Tag = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x20\x7f,]+$", max_length=100)]
log = structlog.get_logger()
DEVICE = re.compile(r"auto|cpu|cuda:[0-9]{1,3}", re.ASCII)


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid")


# --- in --------------------------------------------------------------------------------------------------------------


class DatasetRequest(_In):
    """A dataset that is built in, or that a worker fetches from where it lies. Others are uploaded."""

    uri: str = Field(
        min_length=1, max_length=MAX_URI, examples=["https://data.example.com/images.zip"],
        description=f"{SCHEMES}; the operator says which hosts, buckets and folders",
    )  # fmt: skip
    format: DatasetFormat | None = Field(None, description="where the name does not say it")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)] | None = Field(
        None,
        description="64 hex digits, of the file: another one is refused, a dataset known by it is not fetched again",
    )
    preprocess: Preprocess = Preprocess()
    splits: Splits = Splits()
    columns: Columns = Columns()


class ArtifactOfJob(_In):
    """A file that a job left."""

    job: str = Field(description="id of the job", examples=["job_…"])
    name: str = Field(description="of one of its artifacts that is a model", examples=["pruned.onnx"])


class ModelRequest(_In):
    """A model that a job has made: its result, or a checkpoint that a `train` step kept. Others are uploaded."""

    artifact: ArtifactOfJob


class RecipeRequest(_In):
    """What is to be done, whatever to: a recipe, what insists on its result, and where it is to run."""

    recipe: str | dict[str, JsonValue] = Field(description="the name of a ready-made recipe, or a recipe document")
    requirements: Requirements = Field(Requirements(), description="override the recipe's own field by field")
    device: str = Field("auto", pattern=f"^({DEVICE.pattern})$", description="auto, cpu or cuda:N")


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


# --- out: uploads ----------------------------------------------------------------------------------------------------


Json = dict[str, JsonValue]  # as it was stored: rules that were tightened since do not hide what there is


def _unreadable_is(fallback: Any) -> WrapValidator:
    """Show `fallback` for a stored value that is not what it should be: one odd record must not hide a whole list."""

    def show(value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            log.error("a stored value cannot be shown", field=info.field_name, faults=error.error_count())
            return fallback

    return WrapValidator(show)


class FaultOut(_Out):
    pointer: str
    message: str
    expected: str | None = None


class Reason(BaseModel):
    """Why an upload was refused, or a job or attempt failed."""

    code: str
    message: str
    faults: Annotated[list[FaultOut], _unreadable_is([])] = []


StoredReason = Annotated[
    Reason | None,
    _unreadable_is(Reason(code="internal_error", message="the reason was stored in a form that cannot be read")),
]


class ProblemOut(_Out):
    """RFC 9457. `code` is stable; `faults` lists everything that was found."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    faults: list[FaultOut]
    instance: str | None = None


class Summary(BaseModel):
    """What a worker found in the upload."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    sha256: str | None = None


class _UploadOut(_Out):
    id: str
    sha256: str | None
    filename: str
    format: str
    bytes: int
    state: UploadState
    refusal: StoredReason
    summary: Annotated[Summary | None, _unreadable_is(None)]
    created_at: datetime


class ModelOut(_UploadOut):
    options: Json

    @classmethod
    def of(cls, model: Model) -> ModelOut:
        return cls.model_validate(_upload(model))


class DatasetLinks(_Out):
    self: str
    contact_sheet: str | None = Field(description="a PNG of some images of each class; null where there is none")


class DatasetOut(_UploadOut):
    uri: str
    pinned_sha256: str | None
    options: Json
    links: DatasetLinks

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetOut:
        here = f"/v1/datasets/{dataset.id}"
        sheet = None if dataset.contact_sheet_sha256 is None else f"{here}/contact-sheet"
        links = {"self": here, "contact_sheet": sheet}
        told = {"uri": dataset.uri, "pinned_sha256": dataset.pinned_sha256, "links": links}
        return cls.model_validate({**_upload(dataset), **told})


def _upload(row: Model | Dataset) -> dict[str, Any]:
    names = ("id", "sha256", "filename", "format", "bytes", "state", "refusal", "summary", "created_at", "options")
    return {name: getattr(row, name) for name in names}


class ModelPage(_Out):
    items: list[ModelOut]
    next_page_token: str | None


class DatasetPage(_Out):
    items: list[DatasetOut]
    next_page_token: str | None


# --- out: jobs -------------------------------------------------------------------------------------------------------


class AttemptOut(_Out):
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


class NotFinite(_Out):
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


class Links(_Out):
    self: str
    events: str
    report: str
    artifacts: str


class JobOut(_Out):
    id: str
    name: str
    kind: str
    tags: list[str]
    model: str
    datasets: list[str]
    recipe: Json = Field(description="as it was resolved when the job was submitted")
    requirements: Json
    device: str
    state: JobState
    stage: str | None
    progress: float = Field(ge=0, le=1)
    eta_seconds: float | None
    results: Annotated[Results | None, _unreadable_is(None)]
    error: StoredReason
    attempts: list[AttemptOut]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: Links

    @classmethod
    def of(cls, job: Job, attempts: list[Attempt]) -> JobOut:
        here = f"/v1/jobs/{job.id}"
        same = ("id", "name", "kind", "tags", "recipe", "requirements", "device", "state", "stage", "progress",
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


class JobPage(_Out):
    items: list[JobOut]
    next_page_token: str | None


class EventOut(_Out):
    seq: int
    attempt: int | None = Field(description="number of the attempt; null: the service itself")
    name: str
    body: Annotated[Json, _unreadable_is({})]
    created_at: datetime

    @classmethod
    def of(cls, event: Event) -> EventOut:
        return cls.model_validate({name: getattr(event, name) for name in cls.model_fields})


class EventPage(_Out):
    items: list[EventOut]
    next_after: int | None = Field(description="the `after` of the next page; null: that was all, so far")


class ArtifactOut(_Out):
    name: str
    kind: str
    sha256: str
    bytes: int
    media_type: str

    @classmethod
    def of(cls, artifact: Artifact) -> ArtifactOut:
        return cls.model_validate({name: getattr(artifact, name) for name in cls.model_fields})


class ArtifactPage(_Out):
    items: list[ArtifactOut]
    next_page_token: None = None


# --- out: recipes, health --------------------------------------------------------------------------------------------


class RecipeInfo(_Out):
    name: str
    description: str | None


class CheckedRecipe(_Out):
    recipe: Recipe = Field(description="the recipe with every default filled in")


class RecipePage(_Out):
    items: list[RecipeInfo]
    next_page_token: str | None


class Health(_Out):
    status: Literal["ok"] = "ok"


class Readiness(_Out):
    status: Literal["ready"] = "ready"
    database: Literal["ok"] = "ok"
    storage: Literal["ok"] = "ok"
