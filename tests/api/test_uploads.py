"""Uploading models and datasets: every way in, and everything that can be wrong with it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from store import leases
from store.database import reading, transaction
from store.records import Model
from tests.api.conftest import Api, nothing_is_left, pointers, problem

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def multipart(**fields: str) -> dict[str, Any]:
    return {"files": {"file": ("m.onnx", CONTENT)}, "data": fields}


def raw(**fields: str) -> dict[str, Any]:
    return {"content": CONTENT, "params": {"filename": "m.onnx"} | fields}


@pytest.mark.parametrize("form", [multipart, raw])
def test_a_model_is_stored_by_its_content(api: Api, form: Any) -> None:
    answer = api.http.post("/v1/models", **form())
    assert answer.status_code == 201, answer.text
    model = answer.json()
    assert (model["sha256"], model["bytes"], model["filename"]) == (SHA256, len(CONTENT), "m.onnx")
    assert (model["format"], model["state"], model["refusal"], model["summary"]) == ("onnx", "checking", None, None)
    assert model["options"] == {"architecture": None, "input_shape": None}
    assert answer.headers["location"] == f"/v1/models/{model['id']}"
    assert api.services.artifacts.read_bytes(SHA256) == CONTENT
    assert list(api.settings.uploads_dir.iterdir()) == []
    again = api.http.post("/v1/models", **raw())
    assert (again.status_code, again.json()["id"]) == (200, model["id"])
    assert api.http.get(f"/v1/models/{model['id']}").json() == model
    assert api.http.get("/v1/models", params={"sha256": SHA256}).json()["items"] == [model]
    assert api.http.get("/v1/models", params={"sha256": "0" * 64}).json()["items"] == []


def test_a_pt2_is_a_format(api: Api) -> None:
    answer = api.http.post("/v1/models", content=CONTENT, params={"filename": "exported.PT2"})
    assert (answer.status_code, answer.json()["format"]) == (201, "pt2")


@pytest.mark.parametrize("form", [multipart, raw])
def test_safetensors_with_its_options(api: Api, form: Any) -> None:
    given = form(architecture="resnet20", input_shape="3, 32,32")
    if "files" in given:
        given["files"] = {"file": ("w.safetensors", CONTENT)}
    else:
        given["params"]["filename"] = "w.safetensors"
    answer = api.http.post("/v1/models", **given)
    assert answer.status_code == 201, answer.text
    assert answer.json()["options"] == {"architecture": "resnet20", "input_shape": [3, 32, 32]}


def test_a_name_of_timms_is_left_to_the_check(api: Api) -> None:
    given = raw(architecture="timm:mobilenetv3_small_100", input_shape="3,96,96")
    given["params"]["filename"] = "w.safetensors"
    answer = api.http.post("/v1/models", **given)
    assert (answer.status_code, answer.json()["state"]) == (201, "checking")
    assert answer.json()["options"]["architecture"] == "timm:mobilenetv3_small_100"


@pytest.mark.parametrize(
    ("filename", "fields", "wrong"),
    [
        ("w.safetensors", {}, {"/architecture", "/input_shape"}),
        ("w.safetensors", {"architecture": "resnet9000", "input_shape": "3,32"}, {"/architecture", "/input_shape"}),
        ("w.safetensors", {"architecture": "vgg16", "input_shape": "3,0,32"}, {"/input_shape/1"}),
        ("w.safetensors", {"architecture": "timm:hf-hub:x/y", "input_shape": "3,32,32"}, {"/architecture"}),
        ("w.safetensors", {"architecture": "timm:resnet18\n", "input_shape": "3,32,32"}, {"/architecture"}),
        ("w.safetensors", {"architecture": "timm:", "input_shape": "3,32,32"}, {"/architecture"}),
        ("m.onnx", {"architecture": "vgg16"}, {"/architecture"}),
        ("m.pt2", {"architecture": "vgg16"}, {"/architecture"}),
        ("m.onnx", {"colour": "red", "size": "1"}, {"/colour", "/size"}),
        ("m.onnx", {"colour": "red", "architecture": "bar"}, {"/colour", "/architecture"}),
        ("m.pt", {}, {"/filename"}),
        ("m", {}, {"/filename"}),
        ("", {}, {"/filename"}),
        ("x" * 300 + ".onnx", {}, {"/filename"}),
    ],
)
def test_options_that_cannot_be(api: Api, filename: str, fields: dict[str, str], wrong: set[str]) -> None:
    answer = api.http.post("/v1/models", content=CONTENT, params={"filename": filename} | fields)
    assert pointers(problem(answer, 422, "request_invalid")) == wrong
    assert nothing_is_left(api)
    if filename and len(filename) < 255:
        answer = api.http.post("/v1/models", files={"file": (filename, CONTENT)}, data=fields)
        assert pointers(problem(answer, 422, "request_invalid")) == wrong
        assert nothing_is_left(api)


def test_options_of_a_form_belong_into_the_form(api: Api) -> None:
    answer = api.http.post(
        "/v1/models", files={"file": ("m.onnx", CONTENT)}, params={"architecture": "vgg16", "wait": 0}
    )
    document = problem(answer, 400, "parameter_invalid")
    assert pointers(document) == {"/architecture"}
    assert nothing_is_left(api)


def test_a_name_that_is_not_taken_says_what_is(api: Api) -> None:
    document = problem(api.http.post("/v1/models", files={"file": ("m.pkl", b"x")}), 422, "request_invalid")
    assert ".onnx, .zip, .pt2, .safetensors" in document["faults"][0]["expected"]
    document = problem(api.http.post("/v1/datasets", files={"file": ("m.tar", b"x")}), 422, "request_invalid")
    assert ".zip, .npz" in document["faults"][0]["expected"]


def test_an_empty_file_and_no_file(api: Api) -> None:
    for given in ({"content": b"", "params": {"filename": "m.onnx"}}, {"files": {"file": ("m.onnx", b"")}}):
        assert pointers(problem(api.http.post("/v1/models", **given), 422, "request_invalid")) == {"/file"}
    answer = api.http.post("/v1/models", files={"other": (None, "x")})
    assert pointers(problem(answer, 422, "request_invalid")) == {"/file", "/other"}
    for name, size in (("foo", 300), ("architecture", 300_000)):
        answer = api.http.post("/v1/models", files={name: ("m.onnx", CONTENT[:size])})
        (fault,) = problem(answer, 422, "request_invalid")["faults"]
        assert (fault["pointer"], fault["expected"]) == (f"/{name}", "the file belongs in the field file")
    assert pointers(problem(api.http.post("/v1/models"), 422, "request_invalid")) == {"/filename"}
    two = [("file", ("a.onnx", b"1")), ("file", ("b.onnx", b"2"))]
    assert pointers(problem(api.http.post("/v1/models", files=two), 422, "request_invalid")) == {"/file"}
    assert nothing_is_left(api)


# --- sizes -----------------------------------------------------------------------------------------------------------


def chunks(size: int) -> Iterator[bytes]:
    for start in range(0, size, 50_000):
        yield b"x" * min(50_000, size - start)


def test_a_body_over_the_limit(api: Api) -> None:
    limit = api.settings.max_upload_bytes
    for given in (
        {"content": b"x" * (limit + 1)},
        {"content": chunks(limit + 1)},  # its length is not announced
    ):
        answer = api.http.post("/v1/models", params={"filename": "m.onnx"}, **given)
        document = problem(answer, 413, "body_too_large")
        assert str(limit) in document["faults"][0]["expected"]
    answer = api.http.post("/v1/models", files={"file": ("m.onnx", b"x" * (limit + 1))})
    problem(answer, 413, "body_too_large")
    answer = api.http.post("/v1/models", params={"filename": "m.onnx"}, headers={"Content-Length": "9" * 30})
    problem(answer, 413, "body_too_large")
    assert nothing_is_left(api)
    assert api.http.post("/v1/models", files={"file": ("m.onnx", b"x" * limit)}).status_code == 201
    assert api.http.post("/v1/models", params={"filename": "m.onnx"}, content=chunks(limit)).status_code == 200


def test_a_full_disk(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("api.spool.shutil.disk_usage", lambda _: usage(10**9, 10**9, 1_000))
    answer = api.http.post("/v1/models", **raw())
    assert "BILLHOOK_MIN_FREE_BYTES" in problem(answer, 507, "storage_full")["detail"]
    assert answer.headers["retry-after"]
    assert nothing_is_left(api)


def test_a_json_body_over_the_limit(api: Api) -> None:
    body = json.dumps({"uri": "builtin:digits", "x": "y" * 20_000})
    headers = {"Content-Type": "application/json"}
    for route in ("/v1/datasets", "/v1/jobs"):
        problem(api.http.post(route, content=body, headers=headers), 413, "body_too_large")
        problem(api.http.post(route, content=iter([body.encode()]), headers=headers), 413, "body_too_large")


def test_a_storage_that_is_gone(api: Api) -> None:
    folder = api.settings.data_dir / "artifacts"
    folder.rmdir()
    folder.write_text("no folder any more")
    answer = api.http.post("/v1/models", **raw())
    problem(answer, 503, "storage_unavailable")
    assert answer.headers["retry-after"]
    problem(api.nobody.get("/readyz"), 503, "not_ready")
    with reading(api.services.engine) as session:
        assert session.scalars(select(Model)).all() == []


# --- datasets --------------------------------------------------------------------------------------------------------


def test_a_dataset_with_options(api: Api) -> None:
    options = {"preprocess": json.dumps({"size": [8, 8], "mean": [0.5]}), "splits": json.dumps({"seed": 3})}
    answer = api.http.post("/v1/datasets", files={"file": ("d.ZIP", CONTENT)}, data=options)
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert (dataset["format"], dataset["uri"], dataset["options"]["format"]) == (
        "image_folder",
        "upload",
        "image_folder",
    )
    assert dataset["options"]["preprocess"]["size"] == [8, 8]
    assert dataset["options"]["splits"] == {
        "validation": 0.1,
        "test": 0.2,
        "pruning": None,
        "seed": 3,
        "classes": None,
        "holdout_classes": None,
    }
    same = api.http.post(
        "/v1/datasets", content=CONTENT, params={"filename": "d.zip", **options, "format": "image_folder"}
    )
    assert (same.status_code, same.json()["id"]) == (200, dataset["id"])
    other = api.http.post("/v1/datasets", content=CONTENT, params={"filename": "d.zip"})
    assert other.status_code == 201, "other options make another dataset"
    assert other.json()["sha256"] == dataset["sha256"]
    assert len(api.http.get("/v1/datasets").json()["items"]) == 2


def test_all_faults_of_a_datasets_options_at_once(api: Api) -> None:
    options = {
        "preprocess": json.dumps({"size": [0, 8], "std": [0], "blur": 1}),
        "splits": "{nonsense",
        "format": "npz",
        "colour": "red",
    }
    answer = api.http.post("/v1/datasets", files={"file": ("d.zip", CONTENT)}, data=options)
    found = pointers(problem(answer, 422, "request_invalid"))
    assert found == {"/preprocess/size/0", "/preprocess/std/0", "/preprocess/blur", "/splits", "/format", "/colour"}
    assert nothing_is_left(api)


def test_a_built_in_dataset(api: Api) -> None:
    answer = api.http.post("/v1/datasets", json={"uri": "builtin:digits", "splits": {"seed": 1}})
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert (dataset["uri"], dataset["sha256"], dataset["bytes"], dataset["format"]) == (
        "builtin:digits",
        None,
        0,
        "digits",
    )
    again = api.http.post("/v1/datasets", json={"uri": "builtin:digits", "splits": {"seed": 1}, "preprocess": {}})
    assert (again.status_code, again.json()["id"]) == (200, dataset["id"])
    wrong = {"uri": "builtin:digitz", "splits": {"seed": -1}, "size": 3}
    found = pointers(problem(api.http.post("/v1/datasets", json=wrong), 422, "request_invalid"))
    assert found == {"/uri", "/splits/seed", "/size"}
    assert pointers(problem(api.http.post("/v1/datasets", json=[1]), 422, "request_invalid")) == {""}


# --- states ----------------------------------------------------------------------------------------------------------


def test_waiting_for_the_check(api: Api) -> None:
    model_id = api.model(ready=False)
    refusal = {"code": "operator_unknown", "message": "NonMaxSuppression (node nms_7) is not known", "faults": []}
    timer = threading.Timer(0.3, lambda: api.check(model_id, error=refusal))
    timer.start()
    found = api.http.get(f"/v1/models/{model_id}", params={"wait": 30}).json()
    timer.join()
    assert (found["state"], found["refusal"]) == ("refused", refusal)
    assert api.http.get("/v1/models", params={"state": "refused"}).json()["items"] == [found]


def test_waiting_ends_when_the_time_is_up(api: Api) -> None:
    answer = api.http.post("/v1/models", params={"filename": "m.onnx", "wait": "0.1"}, content=b"x")
    assert (answer.status_code, answer.json()["state"]) == (201, "checking")


def test_deleting(api: Api) -> None:
    model_id, dataset_id = api.model(), api.dataset()
    job_id = api.job(model=model_id, datasets=[dataset_id])
    for path in (f"/v1/models/{model_id}", f"/v1/datasets/{dataset_id}"):
        assert job_id in problem(api.http.delete(path), 409, "in_use")["detail"]
    api.http.post(f"/v1/jobs/{job_id}/cancel")
    for path in (f"/v1/models/{model_id}", f"/v1/datasets/{dataset_id}"):
        answer = api.http.delete(path)
        assert (answer.status_code, answer.content) == (204, b"")
        problem(api.http.get(path), 404, "not_found")
        problem(api.http.delete(path), 404, "not_found")
    assert api.http.get(f"/v1/jobs/{job_id}").json()["model"] == model_id


def test_pages(api: Api) -> None:
    ids = [api.model(bytes([number])) for number in range(5)]
    seen: list[str] = []
    token: str | None = None
    pages = 0
    while pages == 0 or token is not None:
        parameters: dict[str, Any] = {"page_size": 2} | ({"page_token": token} if token else {})
        page = api.http.get("/v1/models", params=parameters).json()
        seen += [item["id"] for item in page["items"]]
        token = page["next_page_token"]
        pages += 1
    assert (seen, pages) == (ids[::-1], 3)
    for parameters in ({"page_size": 0}, {"page_size": 1000}, {"page_token": "x"}, {"sha256": "x"}, {"state": "x"}):
        answer = api.http.get("/v1/models", params=parameters)
        assert pointers(problem(answer, 400, "parameter_invalid")) == {f"/{next(iter(parameters))}"}


def test_the_upload_is_the_owners_alone(api: Api) -> None:
    model_id = api.model()
    for answer in (api.other.get(f"/v1/models/{model_id}"), api.other.delete(f"/v1/models/{model_id}")):
        problem(answer, 404, "not_found")
    assert api.other.get("/v1/models").json()["items"] == []
    mine: httpx.Response = api.other.post("/v1/models", params={"filename": "m.onnx"}, content=b"a model")
    assert mine.status_code == 201
    assert mine.json()["id"] != model_id


# --- models that a job has made --------------------------------------------------------------------------------------


@pytest.fixture
def job(api: Api, tmp_path: Path) -> str:
    """A job that has succeeded and left some files."""
    job_id = api.job()
    onnx = ("application/octet-stream", b"a network")
    files = {"pruned.onnx": onnx, "checkpoint_step0_epoch0010.onnx": (onnx[0], b"an earlier one"),
             "plan.json": ("application/json", b"{}"), "large.onnx": onnx, "large.onnx.data": onnx}  # fmt: skip
    api.succeed(job_id, files, tmp_path)
    return job_id


def of_job(http: Any, job: str, name: str = "pruned.onnx") -> httpx.Response:
    answer: httpx.Response = http.post("/v1/models", json={"artifact": {"job": job, "name": name}})
    return answer


def test_a_model_that_a_job_has_made(api: Api, job: str) -> None:
    answer = of_job(api.http, job, "checkpoint_step0_epoch0010.onnx")
    assert answer.status_code == 201, answer.text
    model = answer.json()
    assert answer.headers["location"] == f"/v1/models/{model['id']}"
    assert (model["filename"], model["format"], model["state"]) == (
        "checkpoint_step0_epoch0010.onnx",
        "onnx",
        "checking",
    )
    assert (model["sha256"], model["bytes"]) == (hashlib.sha256(b"an earlier one").hexdigest(), 14)
    again = of_job(api.http, job, "checkpoint_step0_epoch0010.onnx")
    assert (again.status_code, again.json()["id"]) == (200, model["id"])
    # the same content sent as a file is the same model
    sent = api.http.post("/v1/models", content=b"an earlier one", params={"filename": "x.onnx"})
    assert (sent.status_code, sent.json()["id"]) == (200, model["id"])
    api.check(model["id"], summary={"params": 1})
    assert api.http.get(f"/v1/models/{model['id']}").json()["state"] == "ready"


def test_another_owners_job_has_no_files(api: Api, job: str) -> None:
    problem(of_job(api.other, job), 404, "not_found")
    problem(of_job(api.http, "job_nothing"), 404, "not_found")
    problem(of_job(api.http, job, "nothing.onnx"), 404, "not_found")
    problem(of_job(api.http, job, "../secret.onnx"), 404, "not_found")
    problem(of_job(api.reader, job), 403, "scope_missing")


@pytest.mark.parametrize(
    ("document", "wrong"),
    [
        ({}, {"/artifact"}),
        ({"artifact": {"job": 1}}, {"/artifact/job", "/artifact/name"}),
        ({"artifact": {"job": "j", "name": "n"}, "architecture": "resnet20"}, {"/architecture"}),
    ],
)
def test_a_model_that_is_named_wrongly(api: Api, document: Any, wrong: set[str]) -> None:
    assert pointers(problem(api.http.post("/v1/models", json=document), 422, "request_invalid")) == wrong


@pytest.mark.parametrize(("name", "said"), [("plan.json", "no model"), ("large.onnx", "large.onnx.data")])
def test_an_artifact_that_is_no_model_by_itself(api: Api, job: str, name: str, said: str) -> None:
    (fault,) = problem(of_job(api.http, job, name), 422, "request_invalid")["faults"]
    assert fault["pointer"] == "/artifact/name"
    assert said in fault["message"]


def test_a_checkpoint_of_the_service_itself_is_no_model(api: Api, tmp_path: Path) -> None:
    job_id = api.job()
    (tmp_path / "content").write_bytes(b"state")
    with transaction(api.services.engine) as session:
        lease = leases.claim(session, job_id, "host:1", "cpu")
        assert lease is not None
        sha256, size = api.services.artifacts.put_file(tmp_path / "content")
        leases.add_artifact(session, lease, "state/x.onnx", "checkpoint", sha256, size, "x/y")
    problem(of_job(api.http, job_id, "state/x.onnx"), 422, "request_invalid")
