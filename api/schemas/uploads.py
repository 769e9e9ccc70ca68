"""Models and datasets."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from api.schemas.base import In, Json, Out, unreadable_is
from api.schemas.problems import StoredReason
from core.job import Columns, DatasetFormat, Preprocess, Splits
from store.records import Dataset, Model, UploadState
from store.sources import MAX_URI, SCHEMES


class DatasetRequest(In):
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


class ArtifactOfJob(In):
    """A file that a job left."""

    job: str = Field(description="id of the job", examples=["job_…"])
    name: str = Field(description="of one of its artifacts that is a model", examples=["pruned.onnx"])


class ModelRequest(In):
    """A model that a job has made: its result, or a checkpoint that a `train` step kept. Others are uploaded."""

    artifact: ArtifactOfJob


class Summary(BaseModel):
    """What a worker found in the upload."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    sha256: str | None = None


class UploadOut(Out):
    id: str
    sha256: str | None
    filename: str
    format: str
    bytes: int
    state: UploadState
    refusal: StoredReason
    summary: Annotated[Summary | None, unreadable_is(None)]
    created_at: datetime


class ModelOut(UploadOut):
    options: Json

    @classmethod
    def of(cls, model: Model) -> ModelOut:
        return cls.model_validate(_upload(model))


class DatasetLinks(Out):
    self: str
    contact_sheet: str | None = Field(description="a PNG of some images of each class; null where there is none")


class DatasetOut(UploadOut):
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


class ModelPage(Out):
    items: list[ModelOut]
    next_page_token: str | None


class DatasetPage(Out):
    items: list[DatasetOut]
    next_page_token: str | None
