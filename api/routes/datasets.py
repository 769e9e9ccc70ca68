"""Datasets: upload or name a built-in one, list, read, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.bodies import media_type, parse_json, read_body, validate
from api.errors import Refused
from api.openapi import CONTACT_SHEET_ANSWERS, DATASET_UPLOAD
from api.pages import PageSize, PageToken, cut
from api.routes.artifacts import send_stored
from api.routes.models import Sha256, require_ready
from api.schemas import DatasetOut, DatasetPage, DatasetRequest
from api.services import Caller, Services, Shared, Wait
from api.uploads import Received, receive_upload
from core.errors import Fault
from core.job import DatasetFormat, DatasetOptions
from store import uploads
from store.database import transaction
from store.records import Dataset, UploadState

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])
FORMATS = {".zip": "image_folder", ".npz": "npz"}
FIELDS = frozenset({"format", "preprocess", "splits"})


@router.post("", status_code=201, openapi_extra=DATASET_UPLOAD)
async def upload_dataset(
    request: Request, response: Response, services: Shared, caller: Caller, wait: Wait = 0
) -> DatasetOut:
    """Upload a dataset, or name a built-in one in JSON: 201, or 200 if it is known already, options and all.

    It is then checked; `?wait=` waits for the outcome.
    """
    if media_type(request) == "application/json":
        body = await read_body(request, services.settings)
        dataset, new = await run_in_threadpool(_store_builtin, services, caller.owner, parse_json(body))
    else:
        async with receive_upload(request, services.settings, FORMATS, FIELDS) as received:
            dataset, new = await run_in_threadpool(_store, services, caller.owner, received)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/datasets/{dataset.id}"
    return await _checked(request, services, caller.owner, dataset.id, wait)


def _store_builtin(services: Services, owner: str, document: Any) -> tuple[Dataset, bool]:
    asked, faults = validate(DatasetRequest, document)
    if asked is None:
        raise Refused("request_invalid", "the dataset cannot be used", faults=faults)
    format = asked.uri.removeprefix("builtin:")
    options = DatasetOptions.model_validate({"format": format, "preprocess": asked.preprocess, "splits": asked.splits})
    with transaction(services.engine) as session:
        return uploads.create_dataset(
            session, owner=owner, sha256=None, bytes=0, filename=format, format=format,
            options=options.model_dump(mode="json"), uri=asked.uri,
        )  # fmt: skip


def _store(services: Services, owner: str, received: Received) -> tuple[Dataset, bool]:
    format = FORMATS["." + received.filename.rpartition(".")[2].lower()]
    options = _options(format, received.fields, received.faults)
    # the bytes first: a record must never point at nothing; bytes without a record are swept away
    services.artifacts.put_hashed(received.path, received.sha256, received.bytes)
    with transaction(services.engine) as session:
        return uploads.create_dataset(
            session, owner=owner, sha256=received.sha256, bytes=received.bytes, filename=received.filename,
            format=format, options=options.model_dump(mode="json"),
        )  # fmt: skip


def _options(format: str, fields: Mapping[str, str], unknown: Sequence[Fault]) -> DatasetOptions:
    """Raises `Refused` with all faults, those of the fields that are `unknown` among them."""
    document: dict[str, Any] = {}
    faults = [*unknown]
    for name in sorted(FIELDS & set(fields)):
        try:
            document[name] = fields[name] if name == "format" else parse_json(fields[name], f"/{name}")
        except Refused as error:
            faults += error.faults
    options, found = validate(DatasetOptions, document)
    faults += found
    chosen = document.setdefault("format", format)
    if chosen != format and chosen in get_args(DatasetFormat):
        faults.append(Fault("/format", f"the file's name says {format}", f"{format}, or leave it out"))
    if options is None or faults:
        raise Refused("request_invalid", "the options of the dataset cannot be used", faults=faults)
    return options.model_copy(update={"format": format})


async def _checked(request: Request, services: Services, owner: str, dataset_id: str, wait: float) -> DatasetOut:
    dataset = await services.wait(
        request,
        lambda session: uploads.get(session, Dataset, owner, dataset_id),
        lambda found: found.state != "checking",
        wait,
    )
    return DatasetOut.of(dataset)


@router.get("")
def list_datasets(
    services: Shared,
    caller: Caller,
    sha256: Sha256 = None,
    state: UploadState | None = None,
    page_size: PageSize = 50,
    page_token: PageToken = None,
) -> DatasetPage:
    """Your datasets, newest first."""
    found = services.read(
        lambda session: uploads.find(
            session, Dataset, caller.owner, sha256=sha256, state=state, before=page_token, limit=page_size + 1
        )
    )
    items, token = cut(found, page_size)
    return DatasetPage(items=[DatasetOut.of(dataset) for dataset in items], next_page_token=token)


@router.get("/{dataset_id}")
async def get_dataset(
    request: Request, dataset_id: str, services: Shared, caller: Caller, wait: Wait = 0
) -> DatasetOut:
    """One dataset; `?wait=` waits until it has been checked."""
    return await _checked(request, services, caller.owner, dataset_id, wait)


@router.get("/{dataset_id}/contact-sheet", response_class=StreamingResponse, responses=CONTACT_SHEET_ANSWERS)
async def get_contact_sheet(
    request: Request, dataset_id: str, services: Shared, caller: Caller, wait: Wait = 0
) -> Response:
    """Some training images of each class on one PNG: in the size and colour that the model gets, before `mean` and
    `std`.

    409 `input_not_ready` while the dataset is being checked (`?wait=` waits for that), `input_refused` with the reason
    where it was refused; 404 where no sheet could be made (`summary.warnings` says so). `ETag` is the sha256 of the
    answer; `If-None-Match` is honoured.
    """
    dataset = await services.wait(
        request,
        lambda session: uploads.get(session, Dataset, caller.owner, dataset_id),
        lambda found: found.state != "checking",
        wait,
    )
    require_ready(DatasetOut.of(dataset), "dataset")
    sha256, size = dataset.contact_sheet_sha256, dataset.contact_sheet_bytes
    if sha256 is None or size is None:
        message = "the dataset has no contact sheet: none could be made, or it was checked before there were any"
        raise Refused("not_found", message)
    return await send_stored(request, services, sha256, size, media_type="image/png")


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(dataset_id: str, services: Shared, caller: Caller) -> None:
    """Delete a dataset that no unfinished job needs. Finished jobs keep their records and files."""
    with transaction(services.engine) as session:
        uploads.delete(session, Dataset, caller.owner, dataset_id)
