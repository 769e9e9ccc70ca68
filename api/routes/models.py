"""Models: upload, list, read, delete."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.bodies import media_type, parse_json, read_body, validate
from api.errors import Refused
from api.openapi import GRAPH_ANSWERS, MODEL_UPLOAD
from api.pages import PageSize, PageToken, cut
from api.routes.artifacts import send_stored
from api.schemas import DatasetOut, ModelOut, ModelPage, ModelRequest
from api.services import Caller, Services, Shared, Wait
from api.uploads import Received, receive_upload
from core.errors import Fault
from core.graph_report import NetworkGraph
from core.job import ARCHITECTURE, ARCHITECTURES_TOLD, ModelOptions
from store import jobs, uploads
from store.database import transaction
from store.records import Model, UploadState

router = APIRouter(prefix="/v1/models", tags=["models"])
FORMATS = {".onnx": "onnx", ".zip": "onnx", ".pt2": "pt2", ".safetensors": "safetensors"}
"""A zip holds an ONNX model and the data files beside it; a .pt2 is what `torch.export.save` writes."""
FIELDS = frozenset({"architecture", "input_shape"})
Sha256 = Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="only those with this content")]


@router.post("", status_code=201, openapi_extra=MODEL_UPLOAD)
async def upload_model(
    request: Request, response: Response, services: Shared, caller: Caller, wait: Wait = 0
) -> ModelOut:
    """Upload a model, or name in JSON one that a job has made: 201, or 200 if it is known already.

    It is then checked; `?wait=` waits for the outcome.
    """
    if media_type(request) == "application/json":
        body = await read_body(request, services.settings)
        model, new = await run_in_threadpool(_store_made, services, caller.owner, parse_json(body))
    else:
        async with receive_upload(request, services.settings, FORMATS, FIELDS) as received:
            model, new = await run_in_threadpool(_store, services, caller.owner, received)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/models/{model.id}"
    return await _checked(request, services, caller.owner, model.id, wait)


def _store_made(services: Services, owner: str, document: Any) -> tuple[Model, bool]:
    """A model out of a job's artifact, whose bytes are in the storage already."""
    asked, faults = validate(ModelRequest, document)
    if asked is None:
        raise Refused("request_invalid", "the model cannot be used", faults=faults)
    job_id, name = asked.artifact.job, asked.artifact.name
    with transaction(services.engine) as session:
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
        return uploads.create_model(
            session, owner=owner, sha256=found.sha256, bytes=found.bytes, filename=name, format="onnx",
            options=ModelOptions().model_dump(mode="json"),
        )  # fmt: skip


def _store(services: Services, owner: str, received: Received) -> tuple[Model, bool]:
    format = FORMATS[_extension(received.filename)]
    options, faults = _options(format, received.fields)
    faults = [*received.faults, *faults]
    if options is None or faults:
        raise Refused("request_invalid", "the options of the model cannot be used", faults=faults)
    # the bytes first: a record must never point at nothing; bytes without a record are swept away
    services.artifacts.put_hashed(received.path, received.sha256, received.bytes)
    with transaction(services.engine) as session:
        return uploads.create_model(
            session, owner=owner, sha256=received.sha256, bytes=received.bytes, filename=received.filename,
            format=format, options=options.model_dump(mode="json"),
        )  # fmt: skip


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


async def _checked(request: Request, services: Services, owner: str, model_id: str, wait: float) -> ModelOut:
    model = await services.wait(
        request,
        lambda session: uploads.get(session, Model, owner, model_id),
        lambda found: found.state != "checking",
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
    page_token: PageToken = None,
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
        lambda session: uploads.get(session, Model, caller.owner, model_id),
        lambda found: found.state != "checking",
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
