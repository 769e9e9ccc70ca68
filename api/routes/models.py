"""Models: upload, list, read, delete."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.bodies import media_type, parse_json, read_body, validate
from api.conditional import send_stored
from api.errors import Refused
from api.idempotency import Given, Idempotent, Once, Turn, answered
from api.openapi import GRAPH_ANSWERS, KNOWN_MODEL, MODEL_UPLOAD
from api.pages import ModelToken, PageSize, cut
from api.schemas.uploads import DatasetOut, ModelOut, ModelPage, ModelRequest
from api.services import Caller, Services, Shared, Wait
from api.uploads import Received, receive_upload
from core.errors import Fault
from core.graph_report import NetworkGraph
from core.job import ARCHITECTURE, ARCHITECTURES_TOLD, ModelOptions
from store import jobs, uploads
from store.database import transaction
from store.idempotency import Answer
from store.pulses import Pulse
from store.records import Model, Upload, UploadState

router = APIRouter(prefix="/v1/models", tags=["models"])
FORMATS = {".onnx": "onnx", ".zip": "onnx", ".pt2": "pt2", ".safetensors": "safetensors"}
"""A zip holds an ONNX model and the data files beside it; a .pt2 is what `torch.export.save` writes."""
FIELDS = frozenset({"architecture", "input_shape"})
Sha256 = Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="only those with this content")]


@router.post("", status_code=201, response_model=ModelOut, responses=KNOWN_MODEL, openapi_extra=MODEL_UPLOAD)
async def upload_model(
    request: Request, services: Shared, caller: Caller, once: Idempotent, wait: Wait = 0
) -> Response:
    """Upload a model, or name in JSON one that a job has made: 201, or 200 if it is known already.

    It is then checked; `?wait=` waits for the outcome. An upload that comes again with its `Idempotency-Key` is read to
    its end, to be compared, and stored no second time; it is answered as the first was, whatever the model is by then.
    """
    async with once.turn() as turn:
        if media_type(request) == "application/json":
            body = await read_body(request, services.settings)
            given = await run_in_threadpool(_store_made, turn, once.hash_of(body), caller.owner, parse_json(body))
        else:
            async with receive_upload(request, services.spool, FORMATS, FIELDS) as received:
                given = await services.spool.store(_store, services, turn, caller.owner, received)
    if wait and not given.replayed:
        model_id = ModelOut.model_validate_json(given.answer.body).id
        given = await once.amend(given, await _checked(request, services, caller.owner, model_id, wait))
    return given.response()


def _told(model: Model, new: bool) -> Answer:
    return answered(ModelOut.of(model), 201 if new else 200, {"Location": f"/v1/models/{model.id}"})


def _store_made(turn: Turn, request_sha256: str, owner: str, document: Any) -> Given:
    """A model out of a job's artifact, whose bytes are in the storage already."""
    asked, faults = validate(ModelRequest, document)
    if asked is None:
        raise Refused("request_invalid", "the model cannot be used", faults=faults)
    job_id, name = asked.artifact.job, asked.artifact.name

    def make(session: Session) -> Answer:
        jobs.get_job(session, owner, job_id)
        found = jobs.artifact(session, job_id, name)
        others = {artifact.name for artifact in jobs.artifacts(session, job_id)}
        fault = None
        if found.kind != "output" or _extension(name) != ".onnx":
            fault = Fault("/artifact/name", f"{name} is no model", "a file of the job whose name ends in .onnx")
        elif f"{name}.data" in others:
            right = "an upload: both files, downloaded, as one zip; `billhook models add` makes it"
            fault = Fault("/artifact/name", f"the weights of {name} are in another file, {name}.data", right)
        if fault is not None:
            raise Refused("request_invalid", "the artifact cannot be used as a model", faults=[fault])
        return _told(*uploads.create_model(
            session, owner=owner, sha256=found.sha256, bytes=found.bytes, filename=name, format="onnx",
            options=ModelOptions().model_dump(mode="json"),
        ))  # fmt: skip

    return turn.answer(request_sha256, make)


def _store(services: Services, turn: Turn, owner: str, received: Received) -> Given:
    format = FORMATS[_extension(received.filename)]
    options, faults = _options(format, received.fields)
    faults = [*received.faults, *faults]
    if options is None or faults:
        raise Refused("request_invalid", "the options of the model cannot be used", faults=faults)

    def put() -> None:
        # the bytes first: a record must never point at nothing; bytes without a record are swept away
        services.artifacts.take_over(received.path, received.sha256, received.bytes)

    def make(session: Session) -> Answer:
        return _told(*uploads.create_model(
            session, owner=owner, sha256=received.sha256, bytes=received.bytes, filename=received.filename,
            format=format, options=options.model_dump(mode="json"),
        ))  # fmt: skip

    return turn.answer(Once.hash_of_upload(received), make, put)


def _extension(filename: str) -> str:
    return "." + filename.rpartition(".")[2].lower()


def _options(format: str, fields: Mapping[str, str]) -> tuple[ModelOptions | None, list[Fault]]:
    document: dict[str, Any] = dict(fields)
    faults: list[Fault] = []
    shape = "three integers with commas between them: channels,height,width"
    if "input_shape" in document:
        text = document.pop("input_shape")
        if re.fullmatch(r"\s*\d{1,6}\s*(,\s*\d{1,6}\s*){2}", text, re.ASCII):
            document["input_shape"] = [int(part) for part in text.split(",")]
        else:
            faults.append(Fault("/input_shape", f"{text[:60]!r} is no shape", shape))
    options, found = validate(ModelOptions, document)
    faults += found
    expected = {"architecture": ARCHITECTURES_TOLD, "input_shape": shape}
    if format == "safetensors":
        faults += [
            Fault(f"/{name}", "a safetensors file holds weights only: this is needed too", expected[name])
            for name in sorted(FIELDS - set(fields))
        ]
        name = None if options is None else options.architecture
        if name is not None and not re.fullmatch(ARCHITECTURE, name):
            faults.append(Fault("/architecture", "unknown architecture", expected["architecture"]))
    else:
        faults += [
            Fault(f"/{name}", f"a file of the format {format} says this itself", "leave it out")
            for name in sorted(FIELDS & set(fields))
        ]
    return options, faults


def was_checked(upload: Upload | Pulse) -> bool:
    return upload.state != "checking"


async def _checked(request: Request, services: Services, owner: str, model_id: str, wait: float) -> ModelOut:
    model = await services.wait(
        request,
        model_id,
        lambda session: uploads.get(session, Model, owner, model_id),
        was_checked,
        was_checked,
        wait,
    )
    return ModelOut.of(model)


@router.get("")
def list_models(
    services: Shared,
    caller: Caller,
    sha256: Sha256 = None,
    state: UploadState | None = None,
    page_size: PageSize = 50,
    page_token: ModelToken = None,
) -> ModelPage:
    """Your models, newest first."""
    found = services.read(
        lambda session: uploads.find(
            session, Model, caller.owner, sha256=sha256, state=state, before=page_token, limit=page_size + 1
        )
    )
    items, token = cut(found, page_size)
    return ModelPage(items=[ModelOut.of(model) for model in items], next_page_token=token)


@router.get("/{model_id}")
async def get_model(request: Request, model_id: str, services: Shared, caller: Caller, wait: Wait = 0) -> ModelOut:
    """One model; `?wait=` waits until it has been checked. The counts of its graph are in `summary.graph`."""
    return await _checked(request, services, caller.owner, model_id, wait)


@router.get("/{model_id}/graph", response_model=NetworkGraph, responses=GRAPH_ANSWERS)
async def get_model_graph(
    request: Request, model_id: str, services: Shared, caller: Caller, wait: Wait = 0
) -> Response:
    """What a model is made of: its layers, the channel groups that are cut together, residual blocks, branches and
    plain layers with whether they can be bypassed, and what is frozen by which operator and why.

    409 `input_not_ready` while the model is being checked (`?wait=` waits for that), `input_refused` with the reason
    where it was refused. `ETag` is the sha256 of the answer; `If-None-Match` is honoured.
    """
    model = await services.wait(
        request,
        model_id,
        lambda session: uploads.get(session, Model, caller.owner, model_id),
        was_checked,
        was_checked,
        wait,
    )
    require_ready(ModelOut.of(model), "model")
    if model.graph_sha256 is None or model.graph_bytes is None:
        raise Refused("not_found", "the model was checked before graphs were described: delete it and add it again")
    return await send_stored(request, services, model.graph_sha256, model.graph_bytes, media_type="application/json")


def require_ready(upload: ModelOut | DatasetOut, kind: str) -> None:
    """Raises `Refused` unless the upload has been checked and may be used; where it was refused, with the reason."""
    if upload.state == "checking":
        raise Refused("input_not_ready", f"still being checked: {upload.id}; try again soon")
    if upload.state == "refused":
        reason = upload.refusal
        if reason is None:
            raise Refused("input_refused", f"the {kind} was refused")
        faults = [Fault(fault.pointer, fault.message, fault.expected) for fault in reason.faults]
        raise Refused("input_refused", f"the {kind} was refused ({reason.code}): {reason.message}", faults=faults)


@router.delete("/{model_id}", status_code=204)
def delete_model(model_id: str, services: Shared, caller: Caller) -> None:
    """Delete a model that no unfinished job needs. Finished jobs keep their records and files."""
    with transaction(services.engine) as session:
        uploads.delete(session, Model, caller.owner, model_id)
