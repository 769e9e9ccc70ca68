"""Datasets: upload or name a built-in one, list, read, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.bodies import media_type, parse_json, read_body, validate
from api.conditional import send_stored
from api.errors import Refused
from api.idempotency import Given, Idempotent, Once, Turn, answered
from api.openapi import CONTACT_SHEET_ANSWERS, DATASET_UPLOAD, KNOWN_DATASET
from api.pages import DatasetToken, PageSize, cut
from api.routes.models import Sha256, require_ready, was_checked
from api.schemas.uploads import DatasetOut, DatasetPage, DatasetRequest
from api.services import Caller, Services, Shared, Wait
from api.uploads import Received, receive_upload
from core.errors import Fault
from core.job import Columns, DatasetFormat, DatasetOptions
from store import uploads
from store.database import transaction
from store.idempotency import Answer
from store.records import Dataset, UploadState
from store.settings import Settings
from store.sources import BUILTIN, FORMATS, SourceUri, format_of, parse_uri, refusal

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])
FIELDS = frozenset({"format", "preprocess", "splits", "columns"})


@router.post("", status_code=201, response_model=DatasetOut, responses=KNOWN_DATASET, openapi_extra=DATASET_UPLOAD)
async def upload_dataset(
    request: Request, services: Shared, caller: Caller, once: Idempotent, wait: Wait = 0
) -> Response:
    """Upload a dataset, or say in JSON where it is: 201, or 200 if it is known already, options and all.

    It is then checked; `?wait=` waits for the outcome. An upload that comes again with its `Idempotency-Key` is read to
    its end, to be compared, and stored no second time; it is answered as the first was, whatever became of the dataset.
    """
    async with once.turn() as turn:
        if media_type(request) == "application/json":
            body = await read_body(request, services.settings)
            document = parse_json(body)
            given = await run_in_threadpool(_store_named, services, turn, once.hash_of(body), caller.owner, document)
        else:
            usual = {suffix: formats[0] for suffix, formats in FORMATS.items()}
            async with receive_upload(request, services.spool, usual, FIELDS) as received:
                given = await services.spool.store(_store, services, turn, caller.owner, received)
    if wait and not given.replayed:
        dataset_id = DatasetOut.model_validate_json(given.answer.body).id
        given = await once.amend(given, await _checked(request, services, caller.owner, dataset_id, wait))
    return given.response()


def _told(dataset: Dataset, new: bool) -> Answer:
    return answered(DatasetOut.of(dataset), 201 if new else 200, {"Location": f"/v1/datasets/{dataset.id}"})


def _store_named(services: Services, turn: Turn, request_sha256: str, owner: str, document: Any) -> Given:
    asked, faults = validate(DatasetRequest, document)
    uri = document.get("uri") if isinstance(document, dict) else None
    source = None
    if isinstance(uri, str) and uri and not any(fault.pointer == "/uri" for fault in faults):
        source, found = _source(uri, services.settings)
        faults += found
    if asked is None:
        raise Refused("request_invalid", "the dataset cannot be used", faults=faults)
    format: DatasetFormat | Fault = asked.format or "digits"
    if source is not None:
        format = format_of(source, _asked_format(asked.format, asked.columns))
    elif uri == BUILTIN:
        faults += _builtin_faults(asked)
    if isinstance(format, Fault):
        faults.append(format)
    else:
        faults += _column_faults(format, asked.columns)
    if faults or isinstance(format, Fault):
        raise Refused("request_invalid", "the dataset cannot be used", faults=faults)
    options = DatasetOptions(format=format, preprocess=asked.preprocess, splits=asked.splits, columns=asked.columns)
    filename = source.filename[:255] if source else format

    def make(session: Session) -> Answer:
        return _told(*uploads.create_dataset(
            session, owner=owner, sha256=None, bytes=0, filename=filename, format=format,
            options=options.model_dump(mode="json"), uri=asked.uri, pinned_sha256=asked.sha256,
        ))  # fmt: skip

    return turn.answer(request_sha256, make)


def _source(uri: str, settings: Settings) -> tuple[SourceUri | None, list[Fault]]:
    """What the URI says, None where it is that of a built-in dataset or cannot be read; and what is wrong with it."""
    if uri.startswith("builtin:"):
        return None, [] if uri == BUILTIN else [Fault("/uri", f"there is no built-in dataset {uri[8:100]!r}", BUILTIN)]
    source = parse_uri(uri)
    if isinstance(source, Fault):
        return None, [source]
    fault = refusal(source, settings)
    return source, [] if fault is None else [fault]


def _builtin_faults(asked: DatasetRequest) -> list[Fault]:
    faults = []
    if asked.format not in (None, "digits"):
        faults.append(Fault("/format", f"{BUILTIN} is no {asked.format}", "digits, or leave it out"))
    if asked.sha256 is not None:
        faults.append(Fault("/sha256", f"{BUILTIN} is no file", "leave it out"))
    return faults


def _asked_format(format: DatasetFormat | None, columns: Columns) -> DatasetFormat | None:
    """Whoever names columns means Parquet."""
    return format or ("parquet" if columns != Columns() else None)


def _column_faults(format: str, columns: Columns) -> list[Fault]:
    if columns == Columns() or format == "parquet":
        return []
    return [Fault("/columns", f"the dataset is {format}, which has no columns", "leave it out, or format: parquet")]


def _store(services: Services, turn: Turn, owner: str, received: Received) -> Given:
    options = _options(received.filename, received.fields, received.faults)
    format = options.format
    assert format is not None  # as `_options` says

    def put() -> None:
        # the bytes first: a record must never point at nothing; bytes without a record are swept away
        services.artifacts.take_over(received.path, received.sha256, received.bytes)

    def make(session: Session) -> Answer:
        return _told(*uploads.create_dataset(
            session, owner=owner, sha256=received.sha256, bytes=received.bytes, filename=received.filename,
            format=format, options=options.model_dump(mode="json"),
        ))  # fmt: skip

    return turn.answer(Once.hash_of_upload(received), make, put)


def _options(filename: str, fields: Mapping[str, str], unknown: Sequence[Fault]) -> DatasetOptions:
    """The options, their format as the file's name says unless another that it may be is asked for.

    Raises `Refused` with all faults, those of the fields that are `unknown` among them.
    """
    document: dict[str, Any] = {}
    faults = [*unknown]
    for name in sorted(FIELDS & set(fields)):
        try:
            document[name] = fields[name] if name == "format" else parse_json(fields[name], f"/{name}")
        except Refused as error:
            faults += error.faults
    options, found = validate(DatasetOptions, document)
    faults += found
    possible = FORMATS["." + filename.rpartition(".")[2].lower()]
    chosen = document.get("format")
    if chosen is not None and chosen not in possible and chosen in get_args(DatasetFormat):
        expected = f"{' or '.join(possible)}, or leave it out"
        faults.append(Fault("/format", f"the file's name says {possible[0]}", expected))
    if options is not None:
        meant = _asked_format(options.format, options.columns)
        format = meant if meant in possible else possible[0]
        faults += _column_faults(format, options.columns)
        options = options.model_copy(update={"format": format})
    if options is None or faults:
        raise Refused("request_invalid", "the options of the dataset cannot be used", faults=faults)
    return options


async def _checked(request: Request, services: Services, owner: str, dataset_id: str, wait: float) -> DatasetOut:
    dataset = await services.wait(
        request,
        dataset_id,
        lambda session: uploads.get(session, Dataset, owner, dataset_id),
        was_checked,
        was_checked,
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
    page_token: DatasetToken = None,
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
        dataset_id,
        lambda session: uploads.get(session, Dataset, caller.owner, dataset_id),
        was_checked,
        was_checked,
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
