"""Uploads that break off or stall, and forms that are none: each is refused and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from tests.api.conftest import Api, nothing_is_left, problem


class Broken:
    """The application called as a server calls it, with a body that stops."""

    def __init__(self, api: Api, headers: dict[str, str], query: str = "filename=m.onnx") -> None:
        self.api = api
        headers = {"authorization": api.http.headers["authorization"]} | headers
        self.scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": "/v1/models", "raw_path": b"/v1/models", "query_string": query.encode(),
            "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        self.sent: list[Any] = []

    def post(self, *messages: dict[str, Any], hang: bool = False) -> tuple[int, dict[str, Any]]:
        todo = list(messages)

        async def receive() -> dict[str, Any]:
            if todo:
                return todo.pop(0)
            if hang:
                await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self.sent.append(message)

        asyncio.run(self.api.app(self.scope, receive, send))
        body = b"".join(message.get("body", b"") for message in self.sent)
        return self.sent[0]["status"], json.loads(body)


def more(data: bytes) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": True}


@pytest.fixture
def still(api: Api, monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setattr("api.request_log.DRAIN_SECONDS", 0.1)
    return api


def test_a_connection_that_breaks_leaves_nothing(still: Api) -> None:
    status, document = Broken(still, {"content-length": "1000"}).post(more(b"x" * 500))
    assert (status, document["code"]) == (400, "upload_incomplete")
    form = {"content-type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="m.onnx"\r\n\r\n'
    status, document = Broken(still, form, "").post(more(head + b"xyz"))
    assert (status, document["code"]) == (400, "upload_incomplete")
    status, document = Broken(still, form, "").post({"type": "http.request", "body": head + b"xyz", "more_body": False})
    assert (status, document["code"]) == (400, "upload_incomplete"), "the last boundary is missing"
    assert nothing_is_left(still)


def test_an_upload_that_stalls_is_given_up(still: Api) -> None:
    status, document = Broken(still, {"content-length": "1000"}).post(more(b"x" * 500), hang=True)
    assert (status, document["code"]) == (408, "upload_timeout")
    assert nothing_is_left(still)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"whatever"),
        ("multipart/form-data; boundary=b", b"no boundary at all"),
        ("multipart/form-data; boundary=b", b"--b\r\nbad header\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=" + "b" * 300, b"--b--"),
        ("multipart/form-data; boundary=b",
         b'--b\r\nContent-Disposition: form-data; name="splits"\r\n\r\n\xff\r\n--b--\r\n'),
        ("multipart/form-data; boundary=b", b"".join(
            b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nx\r\n' % number for number in range(99))),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X-A: b\r\n" * 50 + b"\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\nX-A: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n"),
    ],
)  # fmt: skip
def test_forms_that_are_none(api: Api, content_type: str, body: bytes) -> None:
    answer = api.http.post("/v1/datasets", content=body, headers={"Content-Type": content_type})
    problem(answer, 400, "multipart_invalid")
    assert nothing_is_left(api)


@pytest.mark.parametrize(
    "part",
    [b'Content-Disposition: form-data; name="preprocess"\r\n\r\n' + b"x" * 70_000,
     b"Content-Disposition: form-data\r\n\r\nx",
     b'Content-Disposition: form-data; name="format"\r\n\r\nnpz\r\n--b\r\n'
     b'Content-Disposition: form-data; name="format"\r\n\r\nnpz'],
)  # fmt: skip
def test_fields_that_cannot_be(api: Api, part: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = api.http.post("/v1/datasets", content=b"--b\r\n" + part + b"\r\n--b--\r\n", headers=headers)
    problem(answer, 422, "request_invalid")
    assert nothing_is_left(api)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("/v1/models?filename=m.onnx", "application/octet-stream"), ("/v1/jobs", "application/json"),
     ("/v1/datasets?filename=m.zip", "multipart/form-data; boundary=b"), ("/v1/jobs/job_x/clone", "application/json")],
)  # fmt: skip
def test_what_comes_compressed_is_not_taken_for_what_it_stands_for(api: Api, path: str, media_type: str) -> None:
    headers = {"Content-Type": media_type, "Content-Encoding": "gzip", "Idempotency-Key": "again"}
    answer = api.http.post(path, content=gzip.compress(b"{}"), headers=headers)
    problem(answer, 415, "media_type_unsupported")
    assert answer.headers["accept-encoding"] == "identity"
    assert nothing_is_left(api)


def test_as_it_is_is_no_encoding(api: Api) -> None:
    headers = {"Content-Type": "application/octet-stream", "Content-Encoding": "identity"}
    assert api.http.post("/v1/models?filename=m.onnx", content=b"x", headers=headers).status_code == 201
