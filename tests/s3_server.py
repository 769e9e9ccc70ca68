"""A real S3 server over HTTP, moto's, in a process of its own, that fails as it is told and keeps what it was asked.

`python -m tests.s3_server --fd N` serves on a listening socket; `S3` starts that and steers it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
BUCKET = "bucket-1"
PART_BYTES = 100_000  # S3's own smallest part is 5 MiB
VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
Environment = dict[str, Any]
Start = Callable[..., Any]


@dataclass
class S3:
    """The server at `url` with the bucket `bucket-1`. Every key is let in, until `authenticate`."""

    url: str

    def variables(self) -> dict[str, str]:
        """The AWS_ variables of whoever is to use it."""
        return dict(zip(VARIABLES, (self.url, "true", "AKIAPUBLIC", "very-secret", "us-east-1"), strict=True))

    def asked(self) -> list[dict[str, Any]]:
        """What S3 was asked, in order: `method`, `path`, `query`, `headers`, `bytes` of the body."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/control").json()
        return found

    def fail(self, pattern: str, **how: Any) -> None:
        """What is asked as `pattern`, a regular expression of `PUT /path?query`, says goes wrong from now on.

        `status`: it is answered so. `break_at`: the answer breaks off after so many bytes. `seconds`: it comes so late.
        `skip`: so many go well before; `times`: so many go wrong.
        """
        httpx.post(f"{self.url}/control", json={"pattern": pattern, **how}).raise_for_status()

    def authenticate(self, wanted: bool) -> None:
        """Whether only keys that IAM knows are let in: none are."""
        httpx.post(f"{self.url}/moto-api/reset-auth", content="0" if wanted else "inf").raise_for_status()

    def keys(self) -> list[str]:
        return re.findall("<Key>(.*?)</Key>", httpx.get(f"{self.url}/{BUCKET}").text)

    def pending(self) -> list[str]:
        """The keys of multipart uploads that were neither completed nor aborted."""
        return re.findall("<Key>(.*?)</Key>", httpx.get(f"{self.url}/{BUCKET}?uploads").text)

    def reset(self) -> None:
        """An empty bucket, and nothing goes wrong any more."""
        httpx.delete(f"{self.url}/control").raise_for_status()
        self.authenticate(False)
        httpx.post(f"{self.url}/moto-api/reset").raise_for_status()
        httpx.put(f"{self.url}/{BUCKET}").raise_for_status()


@contextmanager
def serving() -> Iterator[S3]:
    """The server, in a process of its own, for as long as the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        environment = os.environ | {"S3_UPLOAD_PART_MIN_SIZE": str(PART_BYTES)}
        for name in VARIABLES:
            environment.pop(name, None)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.s3_server", "--fd", str(number)], cwd=ROOT, env=environment,
            pass_fds=(number,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        server = S3(f"http://127.0.0.1:{listener.getsockname()[1]}")
    try:
        until = time.monotonic() + 60
        while True:
            assert process.poll() is None, "moto's server does not start"
            try:
                server.reset()
                break
            except httpx.HTTPError:
                assert time.monotonic() < until, "moto's server does not answer"
                time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()


class Faulty:
    """The application behind a front that keeps what was asked, and fails as it was told at `/control`."""

    def __init__(self, application: Callable[[Environment, Start], Iterable[bytes]]) -> None:
        self._application = application
        self._faults: list[dict[str, Any]] = []
        self._asked: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def __call__(self, environment: Environment, start: Start) -> Iterable[bytes]:
        if environment["PATH_INFO"] == "/control":
            return self._control(environment, start)
        if environment["PATH_INFO"].startswith("/moto-api"):
            return self._application(environment, start)
        fault = self._fault(environment)
        if fault is None:
            return self._application(environment, start)
        time.sleep(fault.get("seconds", 0))
        if (status := fault.get("status")) is not None:
            start(f"{status} Failed", [("Content-Type", "application/xml"), ("Content-Length", "0")])
            return [b""]
        return _cut(self._application(environment, start), fault["break_at"]) if "break_at" in fault else \
            self._application(environment, start)  # fmt: skip

    def _fault(self, environment: Environment) -> dict[str, Any] | None:
        """Keep what was asked; what is to go wrong with it."""
        line = f"{environment['REQUEST_METHOD']} {environment['PATH_INFO']}?{environment['QUERY_STRING']}"
        headers = {name[5:].lower().replace("_", "-"): value for name, value in environment.items()
                   if name.startswith("HTTP_")}  # fmt: skip
        asked = {"method": environment["REQUEST_METHOD"], "path": environment["PATH_INFO"],
                 "query": environment["QUERY_STRING"], "headers": headers,
                 "bytes": int(environment.get("CONTENT_LENGTH") or 0)}  # fmt: skip
        with self._lock:
            self._asked.append(asked)
            for fault in self._faults:
                if not re.search(fault["pattern"], line):
                    continue
                if fault.get("skip", 0) > 0:
                    fault["skip"] -= 1
                elif fault.get("times", 1) > 0:
                    fault["times"] = fault.get("times", 1) - 1
                    return fault
        return None

    def _control(self, environment: Environment, start: Start) -> Iterable[bytes]:
        with self._lock:
            if environment["REQUEST_METHOD"] == "POST":
                size = int(environment.get("CONTENT_LENGTH") or 0)
                self._faults.append(json.loads(environment["wsgi.input"].read(size)))
            elif environment["REQUEST_METHOD"] == "DELETE":
                self._faults.clear()
                self._asked.clear()
            answer = json.dumps(self._asked).encode()
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]


def _cut(answer: Iterable[bytes], after: int) -> Iterator[bytes]:
    """The beginning of an answer whose head promises more."""
    for part in answer:
        yield part[:after]
        after -= len(part)
        if after <= 0:
            raise ConnectionAbortedError("as it was told")


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args()
    application = Faulty(DomainDispatcherApplication(create_backend_app))
    make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler, fd=options.fd).serve_forever()


if __name__ == "__main__":
    main()
