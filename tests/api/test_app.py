"""What holds for all routes: keys, problem documents, request ids, the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from api import errors
from api.app import create_app
from api.auth import OPEN_PATHS
from core import errors as core_errors
from core.errors import BillhookError
from store import errors as store_errors
from store import leases
from store.columns import now_utc
from store.database import transaction
from store.settings import Settings
from tests.api.conftest import Api, TestClient, problem


def test_a_job_whose_worker_died_is_given_up_with_no_other_worker_alive(api: Api) -> None:
    job_id = api.job()
    with transaction(api.services.engine) as session:
        assert leases.claim(session, job_id, "host:1", "cpu", now_utc() - timedelta(hours=1)) is not None
    api.http.post(f"/v1/jobs/{job_id}/cancel")
    app = create_app(api.settings.model_copy(update={"reaper_seconds": 0.05}))
    with TestClient(app, headers=api.http.headers) as http:
        assert http.get(f"/v1/jobs/{job_id}", params={"wait": 10}).json()["state"] == "cancelled"


def test_what_nobody_needs_is_swept_away_at_the_start(api: Api, tmp_path: Path) -> None:
    (tmp_path / "orphan").write_bytes(b"orphan")
    sha256, _ = api.services.artifacts.put_file(tmp_path / "orphan")
    (path,) = tmp_path.rglob(sha256)
    os.utime(path, (0, 0))
    with TestClient(create_app(api.settings)):
        deadline = time.monotonic() + 10
        while path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_docs_load_nothing_from_elsewhere(api: Api) -> None:
    page = api.nobody.get("/docs")
    loaded = re.findall(r"""(?:src|href|url)(?:=|: )["']([^"']+)["']""", page.text)
    assert len(loaded) == 4, page.text
    assert "//" not in re.sub(r"<!--.*?-->", "", page.text, flags=re.DOTALL)
    for path in loaded:
        answer = api.nobody.get(path)
        assert answer.status_code == 200
        assert len(answer.content) > 1_000
    assert api.nobody.get("/docs/swagger-ui-bundle.js").headers["content-type"].startswith("text/javascript")


def test_an_upload_without_a_key_is_not_read(api: Api) -> None:
    read = []

    def body() -> Iterator[bytes]:
        for number in range(3):
            read.append(number)
            yield b"x"

    problem(api.nobody.post("/v1/models", params={"filename": "m.onnx"}, content=body()), 401, "unauthenticated")
    assert not api.settings.uploads_dir.exists()


def test_the_frameworks_own_errors_are_problems_too(api: Api) -> None:
    problem(api.http.get("/no/such/place"), 404, "not_found")
    problem(api.http.get("/v1/models/"), 404, "not_found")
    problem(api.http.get("/v1/models/%00"), 404, "not_found")
    answer = api.http.put("/v1/models")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    problem(api.http.get("/v1/recipes/nothing"), 404, "not_found")
    problem(api.http.get("/v1/recipes/..%2Fconftest"), 404, "not_found")


def test_a_parameter_that_does_not_exist_is_not_ignored(api: Api) -> None:
    for path in ("/v1/jobs", "/v1/models", "/v1/recipes", f"/v1/jobs/{api.job()}", "/healthz"):
        document = problem(api.http.get(path, params={"stat": "queued", "page_siz": 2}), 400, "parameter_invalid")
        assert [fault["pointer"] for fault in document["faults"]] == ["/page_siz", "/stat"]
    assert "page_size" in problem(api.http.get("/v1/jobs?x=1"), 400, "parameter_invalid")["faults"][0]["expected"]
    problem(api.http.post("/v1/jobs?wait=1", json={}), 400, "parameter_invalid")


def test_what_nobody_foresaw_says_nothing(
    capfd: pytest.CaptureFixture[str], api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret /tmp/path.py")

    monkeypatch.setattr("api.routes.jobs.jobs.list_jobs", fail)
    answer = api.http.get("/v1/jobs", headers={"X-Request-ID": "my-request"})
    document = problem(answer, 500, "internal_error")
    assert "secret" not in json.dumps(document)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line["event"] == "unexpected error"]
    assert line["request_id"] == "my-request"
    assert "RuntimeError: secret" in line["exception"]
    assert api.http.headers["authorization"].removeprefix("Bearer ") not in json.dumps(lines), "no key in the log"


def test_a_database_that_does_not_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("connection refused"))

    monkeypatch.setattr("api.routes.jobs.jobs.list_jobs", fail)
    answer = api.http.get("/v1/jobs")
    problem(answer, 503, "database_unavailable")
    assert answer.headers["retry-after"]
    monkeypatch.setattr("api.auth.authenticate", fail)
    problem(api.http.get("/v1/jobs"), 503, "database_unavailable")


def test_request_ids(api: Api) -> None:
    assert api.nobody.get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("a b", "x" * 65, "<script>"):
        found = api.nobody.get("/healthz", headers={"X-Request-ID": odd}).headers["x-request-id"]
        assert found != odd
        assert len(found) == 32


def test_requests_are_logged(capfd: pytest.CaptureFixture[str], settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"log_level": "info"}))

    async def ask() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.get("/healthz")

    asyncio.run(ask())
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert (line["event"], line["method"], line["path"], line["status"]) == ("request", "GET", "/healthz", 200)
    assert line["request_id"]
    assert line["seconds"] >= 0


def test_health(api: Api) -> None:
    assert api.nobody.get("/healthz").json() == {"status": "ok"}


def test_recipes(api: Api) -> None:
    items = api.http.get("/v1/recipes").json()["items"]
    assert "filter_norm_half" in {item["name"] for item in items}
    for item in items:
        assert api.http.get(f"/v1/recipes/{item['name']}").json()["steps"]
    pages, token = [], ""
    while token is not None:
        page = api.http.get("/v1/recipes", params={"page_size": 1} | ({"page_token": token} if token else {})).json()
        pages += page["items"]
        token = page["next_page_token"]
    assert pages == items
    assert "steps" in api.http.get("/v1/recipes/schema").json()["properties"]


# --- the table of errors ---------------------------------------------------------------------------------------------


def _codes(root: type[BillhookError]) -> set[str]:
    return {root.code} | {code for child in root.__subclasses__() for code in _codes(child)}


def test_every_error_of_the_store_has_a_status() -> None:
    assert store_errors.StoreError.code not in errors.STATUSES, "abstract"
    inner = {"store_error", "lease_lost"}  # a worker's, never a request's
    assert _codes(store_errors.StoreError) - inner <= set(errors.STATUSES)
    assert core_errors.RecipeInvalid.code in errors.STATUSES


def test_an_error_of_core_that_should_not_get_here_is_a_500() -> None:
    answer = errors.problem_of(core_errors.ExactnessFailed("off by one"))
    assert answer.status_code == 500
    assert b"off by one" not in answer.body


# --- the OpenAPI document --------------------------------------------------------------------------------------------


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_the_document_is_whole(api: Api) -> None:
    document = api.nobody.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas, reference
    assert {"JobRequest", "DatasetRequest", "ProblemOut", "Recipe", "Report"} <= set(schemas)
    assert "HTTPValidationError" not in json.dumps(document)
    operations = [
        (path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    ids = [operation["operationId"] for _, _, operation in operations]
    assert len(ids) == len(set(ids))
    for path, method, operation in operations:
        assert operation["summary"], path
        assert ("security" in operation) == (path not in OPEN_PATHS), path
        assert "application/problem+json" in operation["responses"]["4XX"]["content"]
        if method == "post" and not path.endswith(("/cancel", "/retry")):
            assert operation["requestBody"]["content"], path


BINARY = ("application/octet-stream", "image/png")


FILE = ("get", "/v1/jobs/{job_id}/artifacts/{name}", "application/json")
"""Whatever a job has written."""


def test_every_answer_has_a_concrete_schema(api: Api) -> None:
    document = api.app.openapi()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for status, response in operation["responses"].items():
                if not status.startswith("2") or status == "204":
                    continue
                assert response["content"], f"{method} {path}"
                for media_type, content in response["content"].items():
                    for schema in content["schema"].get("anyOf", [content["schema"]]):
                        assert "$ref" in schema or (method, path, media_type) == FILE or schema == {
                            "type": "string", **({"format": "binary"} if media_type in BINARY else {})
                        }, f"{method} {path} {media_type}: {schema}"  # fmt: skip
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("properties") or schema.get("enum") or "anyOf" in schema or name == "JsonValue", name


def test_settings_of_the_environment_make_the_app(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    import api.app as module

    monkeypatch.setenv("BILLHOOK_DATA_DIR", str(settings.data_dir))
    monkeypatch.delitem(vars(module), "app", raising=False)
    assert module.app.state.services.settings.data_dir == settings.data_dir
    assert module.app is module.app
    monkeypatch.delitem(vars(module), "app")
    with pytest.raises(AttributeError):
        _ = module.no_such_thing
