"""Models and datasets: uploaded once, by hash, then checked by the server."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from billhook.archive import LocalFile, local_file, zip_folder
from billhook.errors import ApiError, ChecksumMismatch
from billhook.external_data import model_file
from billhook.operations.downloads import download_file
from billhook.operations.listing import page, pages
from billhook.results import Dataset, Download, Graph, Model, parse, raise_if_refused
from billhook.retries import Core, body_of, check_deadline, deadline_after, fetch, send
from billhook.steps import Call, FileBody, Operation, Sleep, Stream, blocking

Upload = TypeVar("Upload", Model, Dataset)
OnBytes = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes in all."""

# What the server fills in where an option is not given (core.job.Preprocess and Splits; a test compares them). Needed
# to know an upload again: the same bytes with other options are another dataset.
DATASET_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "preprocess": {
        "size": None, "scale": 1 / 255, "mean": [0.0], "std": [1.0], "channels": None, "layout": "NCHW",
        "class_order": None,
    },
    "splits": {
        "validation": 0.1, "test": 0.2, "pruning": None, "seed": 0, "classes": None, "holdout_classes": None,
    },
    "columns": {"image": None, "label": None, "split": None},
}  # fmt: skip
LONG_POLL_SECONDS = 20.0
POLL_SECONDS = 0.5
PATHS: Mapping[type[Any], str] = {Model: "/v1/models", Dataset: "/v1/datasets"}


def _ignore(sent: int, total: int) -> None:
    pass


# --- models ----------------------------------------------------------------------------------------------------------


def list_models(core: Core, *, sha256: str | None = None, limit: int | None = None) -> Stream[Model]:
    """Your models, newest first; only those with this `sha256`, at most `limit`."""
    return pages(core, Model, "/v1/models", {"sha256": sha256}, limit)


def get_model(core: Core, model_id: str) -> Operation[Model]:
    """One model. Raises `ApiError` (404) where there is none of yours with this id."""
    return fetch(core, Model, f"/v1/models/{quote(model_id, safe='')}")


def wait_for_model(core: Core, model_id: str, *, timeout: float | None = None) -> Operation[Model]:
    """The model once the server has checked it. Raises `UploadRefused`, `Timeout`, `ApiError` (404)."""
    deadline = deadline_after(core, timeout)
    model = yield from get_model(core, model_id)
    return (yield from _ready(core, Model, model, deadline))


def get_model_graph(core: Core, model_id: str, *, timeout: float | None = None) -> Operation[Graph]:
    """What the model is made of, once the server has checked it: layers, channel groups, blocks, what is frozen.

    Raises `UploadRefused` (with the reason), `Timeout`, `ApiError` (404: no such model, or one that was checked by an
    older server).
    """
    model = yield from wait_for_model(core, model_id, timeout=timeout)
    return (yield from fetch(core, Graph, f"/v1/models/{quote(model.id, safe='')}/graph"))


def delete_model(core: Core, model_id: str) -> Operation[None]:
    """Delete a model. Raises `ApiError` (409) while a job that is not over needs it."""
    return _delete(core, f"/v1/models/{quote(model_id, safe='')}")


def upload_model(
    core: Core,
    path: str | Path,
    *,
    architecture: str | None = None,
    input_shape: Sequence[int] | None = None,
    timeout: float | None = None,
    on_bytes: OnBytes = _ignore,
) -> Operation[Model]:
    """The model in the file `path`, ready to be used: found by its hash, else uploaded; then checked by the server.

    ONNX, `.pt2` (`torch.export.save`) or safetensors. An ONNX model whose weights lie in files beside it goes as a zip
    of it and them, the same bytes every time. A safetensors file holds weights only: it needs `architecture` (resnet20,
    …) and `input_shape` (channels, height, width). `timeout` in seconds covers all of it.

    Raises `InputInvalid` (no such file, or one of those that the model names is missing), `UploadRefused` (the server
    cannot take it; says why), `Timeout`, `ApiError`, `ConnectionFailed`, `ChecksumMismatch` (the file changed
    meanwhile).
    """
    deadline = deadline_after(core, timeout)
    params: dict[str, str] = {}
    options: dict[str, Any] = {}
    if architecture is not None:
        params["architecture"] = options["architecture"] = architecture
    if input_shape is not None:
        options["input_shape"] = list(input_shape)
        params["input_shape"] = ",".join(str(size) for size in input_shape)

    def same(known: Model) -> bool:
        return {name: value for name, value in known.options.items() if value is not None} == options

    here = Path(path)
    with contextlib.ExitStack() as cleanup:
        if here.suffix.lower() == ".onnx":
            scratch = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="billhook-")))
            file = yield from blocking(lambda: model_file(here, scratch))
        else:
            file = yield from blocking(lambda: local_file(here))
        filename = here.name if file.path == here else f"{here.stem}.zip"
        model = yield from _upload(core, Model, file, filename, params, same, deadline, on_bytes)
    return (yield from _ready(core, Model, model, deadline, str(path)))


def model_from_job(
    core: Core, job_id: str, artifact: str = "pruned.onnx", *, timeout: float | None = None
) -> Operation[Model]:
    """A model that a job has made, ready to be used: its result, or a checkpoint that a `train` step kept.

    Nothing is downloaded or sent: the server has the file. Raises `UploadRefused`, `Timeout`, `ApiError` (404: no such
    job or artifact; 422: one that is no model).
    """
    deadline = deadline_after(core, timeout)
    call = Call("POST", "/v1/models", json={"artifact": {"job": job_id, "name": artifact}})
    reply = yield from send(core, call, deadline=deadline)
    model = parse(Model, body_of(reply))
    return (yield from _ready(core, Model, model, deadline, f"{artifact} of {job_id}"))


# --- datasets --------------------------------------------------------------------------------------------------------


def list_datasets(core: Core, *, sha256: str | None = None, limit: int | None = None) -> Stream[Dataset]:
    """Your datasets, newest first; only those with this `sha256`, at most `limit`."""
    return pages(core, Dataset, "/v1/datasets", {"sha256": sha256}, limit)


def get_dataset(core: Core, dataset_id: str) -> Operation[Dataset]:
    """One dataset. Raises `ApiError` (404) where there is none of yours with this id."""
    return fetch(core, Dataset, f"/v1/datasets/{quote(dataset_id, safe='')}")


def wait_for_dataset(core: Core, dataset_id: str, *, timeout: float | None = None) -> Operation[Dataset]:
    """The dataset once the server has checked it. Raises `UploadRefused`, `Timeout`, `ApiError` (404)."""
    deadline = deadline_after(core, timeout)
    dataset = yield from get_dataset(core, dataset_id)
    return (yield from _ready(core, Dataset, dataset, deadline))


def dataset_contact_sheet(
    core: Core, dataset_id: str, output: str | Path | None = None, *, timeout: float | None = None
) -> Operation[Download]:
    """Some images of each class on one PNG, as the file `output`, once the server has checked the dataset.

    `output`: default DATASET_ID.png, here; a folder: that name, there. It is replaced in one go. Raises `UploadRefused`
    (with the reason), `InputInvalid` (cannot be written), `ChecksumMismatch`, `Timeout`, `ApiError` (404: no such
    dataset, or one without a sheet).
    """
    deadline = deadline_after(core, timeout)
    dataset = yield from get_dataset(core, dataset_id)
    dataset = yield from _ready(core, Dataset, dataset, deadline)
    target = Path(output) if output is not None else Path(f"{dataset.id}.png")
    if target.is_dir():
        target = target / f"{dataset.id}.png"

    def advance(done: int, total: int | None) -> None:
        check_deadline(core, deadline, "downloading the contact sheet")

    path = f"/v1/datasets/{quote(dataset.id, safe='')}/contact-sheet"
    return (yield from download_file(core, path, target, advance, deadline))


def delete_dataset(core: Core, dataset_id: str) -> Operation[None]:
    """Delete a dataset. Raises `ApiError` (409) while a job that is not over needs it."""
    return _delete(core, f"/v1/datasets/{quote(dataset_id, safe='')}")


def is_reference(source: str | Path) -> bool:
    """Whether `source` is a URI that the server sees to, and no file of this machine."""
    return isinstance(source, str) and re.match(r"builtin:|[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def add_dataset(
    core: Core,
    source: str | Path,
    *,
    preprocess: Mapping[str, Any] | None = None,
    splits: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    sha256: str | None = None,
    timeout: float | None = None,
    on_bytes: OnBytes = _ignore,
) -> Operation[Dataset]:
    """The dataset `source`, ready to be used: a file (zip, npz, parquet), a folder of images, `builtin:digits`, or a
    URI from which the server fetches it: `https://…`, `s3://bucket/key`, `file:///…` of the server's own machine.

    A folder is zipped on the way, the same bytes every time, so that it too is uploaded once only. What a URI names is
    not read here; the server's operator says which are allowed. `preprocess` (size, mean, std, channels, …), `splits`
    and `columns` (image, label, split; of Parquet) are those of the documentation; the server checks them. `format`:
    where the name does not say it (image_folder, npz, parquet). `sha256`: what the file's must be; with it, what the
    server has fetched before is not fetched again.

    Raises as `upload_model`; `ChecksumMismatch` for a file of this machine with another `sha256`.
    """
    deadline = deadline_after(core, timeout)
    sha256 = None if sha256 is None else sha256.lower()
    options = {"preprocess": preprocess, "splits": splits, "columns": columns}
    given = {name: value for name, value in options.items() if value is not None}
    if is_reference(source):
        pinned = {"format": format, "sha256": sha256}
        body = {"uri": source, **given, **{name: value for name, value in pinned.items() if value is not None}}
        reply = yield from send(core, Call("POST", "/v1/datasets", json=body), deadline=deadline)
        dataset = parse(Dataset, body_of(reply))
        return (yield from _ready(core, Dataset, dataset, deadline, str(source)))

    params = {name: json.dumps(value) for name, value in given.items()}
    if format is not None:
        params["format"] = format

    def same(known: Dataset) -> bool:
        alike = all(_filled(name, known.options.get(name)) == _filled(name, options[name]) for name in DATASET_DEFAULTS)
        return alike and format in (None, known.format)

    path = Path(source)
    with contextlib.ExitStack() as cleanup:
        if path.is_dir():
            scratch = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="billhook-")))
            file = yield from blocking(lambda: zip_folder(path, scratch / "images.zip"))
            filename = f"{path.resolve().name}.zip"
        else:
            file = yield from blocking(lambda: local_file(path))
            filename = path.name
        if sha256 not in (None, file.sha256):
            raise ChecksumMismatch(f"{source} has the sha256 {file.sha256}, not {sha256}")
        dataset = yield from _upload(core, Dataset, file, filename, params, same, deadline, on_bytes)
    return (yield from _ready(core, Dataset, dataset, deadline, str(source)))


def _filled(section: str, given: Any) -> Any:
    """`given` as JSON would carry it, with the defaults of its section."""
    return {**DATASET_DEFAULTS[section], **json.loads(json.dumps(given or {}))}


# --- both ------------------------------------------------------------------------------------------------------------


def _upload(
    core: Core, kind: type[Upload], file: LocalFile, filename: str, params: Mapping[str, str],
    same: Callable[[Upload], bool], deadline: float | None, on_bytes: OnBytes,
) -> Operation[Upload]:  # fmt: skip
    """The record of `file`: one with this hash for which `same` holds, else a new one."""
    known, _ = yield from page(core, kind, PATHS[kind], {"sha256": file.sha256})
    for record in known:
        if same(record) and record.state != "refused":  # what was refused is checked again when it is sent again
            return record

    def advance(sent: int) -> None:
        check_deadline(core, deadline, f"uploading {filename}")
        on_bytes(sent, file.size)

    sendable = filename.encode("utf-8", "replace").decode()  # a name that is no UTF-8 is a path all the same
    call = Call(
        "POST", PATHS[kind], params={"filename": sendable, **params}, file=FileBody(file.path, file.size, advance),
        headers={"Content-Type": "application/octet-stream"},
    )  # fmt: skip
    reply = yield from send(core, call, deadline=deadline)
    record = parse(kind, body_of(reply))
    if record.sha256 != file.sha256:
        raise ChecksumMismatch(f"{filename} changed while it was uploaded, or was damaged on the way")
    return record


def _ready(
    core: Core, kind: type[Upload], record: Upload, deadline: float | None, called: str | None = None
) -> Operation[Upload]:
    """`record` once the server has checked it, `called` so here. Raises `UploadRefused`, `Timeout`."""
    called = called or record.filename or record.id
    while record.state == "checking":
        check_deadline(core, deadline, f"the server checked {called}")
        asked = core.now()
        wait = LONG_POLL_SECONDS if deadline is None else min(LONG_POLL_SECONDS, max(0.0, deadline - asked))
        record = yield from fetch(core, kind, f"{PATHS[kind]}/{record.id}", wait=wait)
        if record.state == "checking" and core.now() - asked < POLL_SECONDS:
            yield Sleep(POLL_SECONDS)  # a server that does not hold the answer back is not to be hammered
    return raise_if_refused(record, called)


def _delete(core: Core, path: str) -> Operation[None]:
    try:
        yield from send(core, Call("DELETE", path))
    except ApiError as error:
        if error.status != 404 or not error.repeated:  # gone already: the answer of the first try was lost
            raise
