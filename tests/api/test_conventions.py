"""What HTTP asks of every address, against a real server on a socket: HEAD, OPTIONS, problem documents throughout."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from api import listen
from api.app import create_app
from store.database import transaction
from store.keys import add_key, new_secret
from store.settings import Settings
from tests.api.conftest import Api


class Server:
    """The application as `api.listen` serves it."""

    def __init__(self, settings: Settings) -> None:
        app = create_app(settings)
        self.secret = new_secret()
        with transaction(app.state.services.engine) as session:
            add_key(session, self.secret, owner="ann", name="test")
        self.server = uvicorn.Server(listen.configuration(app))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()[:2]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    def __enter__(self) -> Server:
        self.thread.start()
        self.exchange(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")  # it is up
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self.listener.close()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)

    def exchange(self, sent: bytes) -> bytes:
        """All that comes back until the server closes the connection."""
        with socket.create_connection(self.address, timeout=20) as connection:
            connection.sendall(sent)
            answer = b""
            while part := connection.recv(65_536):
                answer += part
            return answer

    def ask(self, line: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
        """The answer to a request with the key: status, headers in lower case, body."""
        lines = [line, "Host: x", f"Authorization: Bearer {self.secret}", "Connection: close", *headers, "", ""]
        return parsed(self.exchange("\r\n".join(lines).encode()))


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    return int(status.split()[1]), headers, body


@pytest.fixture
def server(settings: Settings) -> Iterator[Server]:
    with Server(settings) as running:
        yield running


def is_problem(answer: tuple[int, dict[str, str], bytes], status: int, code: str) -> dict[str, str]:
    """Checks the problem document; returns the headers."""
    found, headers, body = answer
    assert (found, headers["content-type"]) == (status, "application/problem+json"), body
    document = json.loads(body)
    assert (document["status"], document["code"]) == (status, code), document
    assert document["instance"] == f"urn:billhook:request:{headers['x-request-id']}"
    assert int(headers["content-length"]) == len(body)
    assert headers["x-content-type-options"] == "nosniff"
    return headers


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ("GET /no/such/place HTTP/1.1", 404, "not_found"),
        ("GET / HTTP/1.1", 404, "not_found"),
        ("GET /v1/models/ HTTP/1.1", 404, "not_found"),
        ("GET //v1/models HTTP/1.1", 404, "not_found"),
        ("GET /v1/jobs/%ff%fe HTTP/1.1", 404, "not_found"),
        ("GET /v1/jobs/%0a HTTP/1.1", 404, "not_found"),
        ("GET /v1/jobs/../models HTTP/1.1", 404, "not_found"),
        ("OPTIONS * HTTP/1.1", 404, "not_found"),
        ("CONNECT example.com:443 HTTP/1.1", 404, "not_found"),
        ("PUT /v1/jobs HTTP/1.1", 405, "method_not_allowed"),
        ("TRACE /v1/jobs HTTP/1.1", 405, "method_not_allowed"),
        ("FOO /healthz HTTP/1.1", 405, "method_not_allowed"),
        ("POST /openapi.json HTTP/1.1", 405, "method_not_allowed"),
        ("DELETE /docs HTTP/1.1", 405, "method_not_allowed"),
        ("GET /v1/jobs?stat=x HTTP/1.1", 400, "parameter_invalid"),
        ("GET /v1/jobs?page_size=x HTTP/1.1", 400, "parameter_invalid"),
        ("GET /v1/jobs?tag=%00 HTTP/1.1", 400, "parameter_invalid"),
        ("POST /v1/jobs HTTP/1.1", 415, "media_type_unsupported"),
    ],
)
def test_the_frameworks_errors(server: Server, line: str, status: int, code: str) -> None:
    headers = is_problem(server.ask(line), status, code)
    assert ("allow" in headers) == (status == 405)


def test_bodies_that_cannot_be(server: Server) -> None:
    json_head = "Content-Type: application/json"
    too_large = server.ask("POST /v1/jobs HTTP/1.1", json_head, "Content-Length: 99999999", "Expect: 100-continue")
    is_problem(too_large, 413, "body_too_large")
    # a chunk whose length is no number: h11 refuses it in the middle of the request
    sent = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.secret}\r\n{json_head}\r\n"
    answer = server.exchange(sent.encode() + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
    is_problem(parsed(answer), 400, "bad_request")
    assert server.ask("GET /v1/jobs HTTP/1.1")[0] == 200, "it goes on"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"hello\r\n\r\n", 400, "bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad_request"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad_request"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400, "bad_request"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n", 400, "bad_request"),
        (b"GET /h\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"),
        (b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "bad_request"),
        (b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "bad_request"),
        (b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "not_implemented"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000, 431, "headers_too_large"),
        (b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "headers_too_large"),
    ],
)  # fmt: skip
def test_what_is_no_http(server: Server, sent: bytes, status: int, code: str) -> None:
    headers = is_problem(parsed(server.exchange(sent)), status, code)
    assert headers["connection"] == "close"
    assert server.ask("GET /healthz HTTP/1.1")[0] == 200, "it goes on"


def test_a_websocket_is_not_to_be_had(server: Server) -> None:
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    lines = ["GET {} HTTP/1.1", "Host: x", "Connection: Upgrade, close", *upgrade, "", ""]
    is_problem(parsed(server.exchange("\r\n".join(lines).format("/v1/jobs").encode())), 401, "unauthenticated")
    assert parsed(server.exchange("\r\n".join(lines).format("/healthz").encode()))[0] == 200, "RFC 9110, 7.8: ignored"


def test_a_request_that_outlasts_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long poll is cut off by an answer that says when to ask again."""
    answers: list[Any] = []
    body = json.dumps({"uri": "builtin:digits"}).encode()
    client = httpx.Client(base_url="http://{}:{}".format(*server.address), trust_env=False, timeout=60,
                          headers={"Authorization": f"Bearer {server.secret}"})  # fmt: skip
    with client as http:
        dataset = http.post("/v1/datasets", content=body, headers={"Content-Type": "application/json"}).json()["id"]
        waiting = threading.Thread(
            target=lambda: answers.append(http.get(f"/v1/datasets/{dataset}", params={"wait": 50}))
        )
        server.server.config.timeout_graceful_shutdown = 1
        waiting.start()
        deadline = time.monotonic() + 20
        while not any(
            connection.cycle and not connection.cycle.response_complete
            for connection in list(server.server.server_state.connections)
        ):
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.02)
        server.stop()
        waiting.join(20)
    (answer,) = answers
    assert (answer.status_code, answer.json()["code"]) == (503, "stopping")
    assert int(answer.headers["retry-after"]) > 0


# --- HEAD and OPTIONS ------------------------------------------------------------------------------------------------


def test_head_is_get_without_a_body(server: Server) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs", "/docs/swagger-ui.css", "/v1/models", "/v1/jobs",
                 "/v1/recipes", "/v1/recipes/schema", "/v1/recipes/filter_norm_half"):  # fmt: skip
        status, headers, body = server.ask(f"GET {path} HTTP/1.1")
        found = server.ask(f"HEAD {path} HTTP/1.1")
        assert (found[0], found[2]) == (status, b"") == (200, b""), path
        assert len(body) == int(found[1]["content-length"])
        for name in headers.keys() - {"date", "x-request-id"}:
            assert found[1][name] == headers[name], (path, name)
    for path, status in (("/v1/jobs/job_x", 404), ("/v1/jobs?x=1", 400), ("/no/such/place", 404)):
        found = server.ask(f"HEAD {path} HTTP/1.1")
        assert (found[0], found[1]["content-type"], found[2]) == (status, "application/problem+json", b"")
    assert parsed(server.exchange(b"HEAD /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))[0] == 401


def test_head_goes_with_every_get(api: Api) -> None:
    job_id, model_id, dataset_id = api.job(), api.model(), api.dataset()
    ids = {"job_id": job_id, "model_id": model_id, "dataset_id": dataset_id, "name": "filter_norm_half",
           "dry_run_id": "dry_x", "key_id": "key_x"}  # fmt: skip
    for path, item in api.app.openapi()["paths"].items():
        address = path.format(**ids)
        found = api.http.head(address).status_code
        assert found == api.http.get(address).status_code, path
        assert found != 405 or "get" not in item


def test_options_says_what_there_is(api: Api) -> None:
    for path, methods in {
        "/v1/models": "GET, HEAD, OPTIONS, POST", "/v1/models/mdl_x": "DELETE, GET, HEAD, OPTIONS",
        "/v1/jobs/job_x/cancel": "OPTIONS, POST", "/healthz": "GET, HEAD, OPTIONS", "/docs": "GET, HEAD, OPTIONS",
        "/openapi.json": "GET, HEAD, OPTIONS",
    }.items():  # fmt: skip
        answer = api.http.options(path)
        assert (answer.status_code, answer.content, answer.headers["allow"]) == (204, b"", methods), path
        refused = api.http.patch(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, methods)
    assert api.http.options("/no/such/place").status_code == 404


def test_documents_have_tags(api: Api) -> None:
    for path in ("/openapi.json", "/v1/recipes/schema"):
        first = api.http.get(path)
        tag = first.headers["etag"]
        again = api.http.get(path, headers={"If-None-Match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert api.http.get(path, headers={"If-None-Match": '"x"'}).content == first.content
        assert api.http.get(path, headers={"If-Match": '"x"'}).status_code == 412
