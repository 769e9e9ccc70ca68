"""A small Billhook server at the HTTP port, in this process, that can be told to misbehave."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from tests.client.dry_run_answer import dry_run
from tests.client.fake_answers import GRAPH, WHEN, WORKERS
from tests.client.fake_stream import stream_events

KEY = "bh_" + "k" * 43
PRUNED = bytes(range(256)) * 4096  # 1 MiB
SHEET = b"a picture of some images"
Document = dict[str, Any]
OVER = ("succeeded", "failed", "cancelled")


def report(*, met: bool) -> Document:
    def variant(params: int, accuracy: float, milliseconds: float) -> Document:
        return {
            "test": {"images": 360, "accuracy": accuracy, "loss": 0.1},
            "validation": {"images": 180, "accuracy": accuracy, "loss": 0.1},
            "params": params, "macs": 10 * params, "filters": 64, "file_bytes": 4 * params, "sha256": "0" * 64,
            "latency": [{"device": "cpu", "runtime": "onnxruntime", "batch_size": 1, "threads": 1,
                         "latency_ms_p50": milliseconds, "stable": True}],
            "memory": {"peak_memory_bytes": 8 * params},
        }  # fmt: skip

    return {
        "version": 1,
        "variants": {"original": variant(272474, 0.9861, 0.5), "pruned": variant(120000, 0.9833, 0.25)},
        "ratios": {"params": 0.44, "latency": 0.5},
        "target_met": True,
        "requirements": [
            {"name": "latency_ratio", "required": "<= 0.6", "measured": 0.5 if met else 0.7, "passed": met}
        ],
        "requirements_met": met,
        "warnings": ["the validation split is small"],
    }


@dataclass
class FakeServer:
    """Use as a context manager. `log` holds "METHOD path" of every request; the rest are knobs."""

    job_plan: list[Document] = field(default_factory=lambda: [
        {"state": "running", "stage": "fine_tune", "progress": 0.75, "eta_seconds": 10.0},
        {"state": "succeeded", "stage": "measure", "progress": 1.0, "results": {"requirements_met": True}},
    ])  # fmt: skip
    """What a job is at each look; the last one stays."""
    requirements_met: bool = True
    refusal: Document | None = None
    has_graphs: bool = True
    has_sheets: bool = True
    recipe_problem: Document | None = None
    submit_problem: Document | None = None
    dry_run: Document = field(default_factory=lambda: dry_run(met=True))
    dry_run_looks: int = 0  # how often it is not known yet
    break_download_after: list[int] = field(default_factory=list)
    two_files: bool = False
    etag: str | None = f'"{hashlib.sha256(PRUNED).hexdigest()}"'
    on_range: Callable[[], None] | None = None
    wrong_upload_hash: bool = False
    stream: str = "text/event-stream"
    """What a stream's answer calls itself; "" refuses streams."""
    cuts: list[int] = field(default_factory=list)
    """After how many messages the next streams break."""
    silent_streams: bool = False
    page_size: int = 50

    log: list[str] = field(default_factory=list)
    headers: list[Document] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)  # of dry runs
    models: dict[str, Document] = field(default_factory=dict)
    datasets: dict[str, Document] = field(default_factory=dict)
    jobs: dict[str, Document] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    by_key: dict[tuple[str, str], tuple[int, Document, bytes]] = field(default_factory=dict)
    """The answers to what came with an idempotency key."""
    failures: dict[str, list[tuple[int, Document] | str | None]] = field(default_factory=lambda: defaultdict(list))
    """By "METHOD path", what happens to the next ones: (status, headers), "drop" (no answer), "lose" (done, but no
    answer), "hang" (no answer for long), None (nothing)."""
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        fake = self

        class Handler(_Handler):
            server_state = fake

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that hangs up is part of the tests

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, request: str) -> int:
        """How often "METHOD path" came."""
        return self.log.count(request)

    def wait_for(self, request: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while request not in self.log:
            assert time.monotonic() < end, f"{request} never came; these did: {self.log}"
            time.sleep(0.01)

    # --- what it knows -----------------------------------------------------------------------------------------------

    def add_upload(self, kind: str, sha256: str | None, size: int, query: dict[str, str]) -> tuple[Document, bool]:
        prefix, table = ("mdl", self.models) if kind == "models" else ("ds", self.datasets)
        if kind == "models":
            shape = [int(part) for part in query.get("input_shape", "").split(",") if part]
            options: Document = {"architecture": query.get("architecture"), "input_shape": shape or None}
        else:
            preprocess = {"size": None, "scale": 1 / 255, "mean": [0.0], "std": [1.0], "channels": None,
                          "layout": "NCHW", "class_order": None}  # fmt: skip
            splits = {"validation": 0.1, "test": 0.2, "seed": 0, "classes": None, "holdout_classes": None}
            columns = {"image": None, "label": None, "split": None}
            options = {
                "format": "npz", "preprocess": preprocess | json.loads(query.get("preprocess", "{}")),
                "splits": splits | json.loads(query.get("splits", "{}")),
                "columns": columns | json.loads(query.get("columns", "{}")),
            }  # fmt: skip
        for known in table.values():
            if sha256 is not None and known["sha256"] == sha256 and known["options"] == options:
                if known["state"] == "refused":
                    known.update(state="checking", refusal=None)
                return known, False
        record = {
            "id": f"{prefix}_{len(table) + 1:026}", "sha256": sha256, "filename": query.get("filename", "digits"),
            "format": "npz", "options": options, "bytes": size, "state": "checking", "refusal": None, "summary": None,
            "created_at": WHEN,
        }  # fmt: skip
        table[record["id"]] = record
        return record, True

    def look_at_upload(self, record: Document) -> Document:
        """Checked at the first look."""
        if record["state"] == "checking":
            record.update(
                {"state": "refused", "refusal": self.refusal} if self.refusal
                else {"state": "ready", "summary": {"params": 272474}}
            )  # fmt: skip
        return record

    def submit(self, body: Document) -> Document:
        job = {
            "id": f"job_{len(self.jobs) + 1:026}", "name": "", "kind": "prune", "tags": [], "requirements": {},
            "stage": None, "progress": 0.0, "eta_seconds": None, "results": None, "error": None, "attempts": [],
            "created_at": WHEN, "started_at": None, "finished_at": None, "links": {}, "state": "queued", **body,
            "recipe": {"name": body["recipe"]} if isinstance(body["recipe"], str) else body["recipe"],
        }  # fmt: skip
        self.jobs[job["id"]] = job
        return job

    def clone(self, job: Document, changes: Document) -> Document:
        asked = {name: job[name] for name in ("model", "datasets", "recipe", "name", "kind", "tags")}
        return self.submit({**asked, **changes, "cloned_from": job["id"]})

    def look_at_job(self, job: Document) -> Document:
        if job["state"] not in OVER:
            if job["state"] == "cancelling":
                job["state"] = "cancelled"
            else:
                job.update(self.job_plan[min(self.looks[job["id"]], len(self.job_plan) - 1)])
                self.looks[job["id"]] += 1
        return job

    def events(self, job: Document) -> list[Document]:
        """One epoch for each look, and one more."""
        return [
            {"seq": seq, "attempt": 1, "name": f"fine_tune/0/epoch/{seq}", "created_at": WHEN,
             "body": {"epoch": seq, "validation_accuracy": 0.9}}
            for seq in range(1, self.looks[job["id"]] + 2)
        ]  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # head and body in one packet: apart, they wait for each other
    disable_nagle_algorithm = True
    server_state: FakeServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_DELETE = do_GET

    def _handle(self) -> None:
        fake = self.server_state
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        request = f"{self.command} {parts.path}"
        digest, size, head = hashlib.sha256(), int(self.headers.get("Content-Length", 0)), b""
        for start in range(0, size, 2**16):
            chunk = self.rfile.read(min(2**16, size - start))
            digest.update(chunk)
            head = head or chunk
        fake.log.append(request)
        fake.headers.append(dict(self.headers))
        fake.bodies.append(head)
        failing = fake.failures[request]
        failure = failing.pop(0) if failing else None
        if failure == "hang":
            fake.closing.wait(30)
            failure = "drop"
        if failure == "drop":
            self.close_connection = True
            return
        if isinstance(failure, tuple):
            return self._problem(failure[0], "made_to_fail", headers=failure[1])
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self._problem(401, "unauthenticated")
        self._lose = failure == "lose"
        self._key = (request, self.headers.get("Idempotency-Key", ""))
        if self._key in fake.by_key:
            status, headers, content = fake.by_key[self._key]
            return self._send(status, {**headers, "Idempotent-Replayed": "true"}, content)
        is_json = self.headers.get("Content-Type") == "application/json"
        body = json.loads(head) if is_json and head else None
        sha256 = None if is_json else digest.hexdigest()
        self._route(self.command, parts.path, query, body, sha256, size)

    def _route(self, method: str, path: str, query: dict[str, str], body: Any, sha256: str | None, size: int) -> None:
        fake = self.server_state
        match method, path.removeprefix("/v1/").split("/"):
            case "GET", ["workers"]:
                self._json({"items": WORKERS, "next_page_token": None})
            case "GET", ["recipes"]:
                self._json({"items": [{"name": "half", "description": "Half of it."}], "next_page_token": None})
            case "GET", ["recipes", "schema"]:
                self._json({"type": "object"})
            case "GET", ["recipes", "half"]:
                self._json({"version": 1, "steps": [{"method": "filter_norm"}]})
            case "POST", [("models" | "datasets") as kind]:
                if fake.wrong_upload_hash:
                    sha256 = "f" * 64
                made = (body or {}).get("artifact")
                if made is not None and made["job"] not in fake.jobs:
                    return self._problem(404, "not_found")
                if made is not None:
                    sha256, query = hashlib.sha256(PRUNED).hexdigest(), {"filename": made["name"]}
                record, new = fake.add_upload(kind, sha256, size, query if body is None or made else {})
                self._json(record, 201 if new else 200)
            case "GET", [("models" | "datasets" | "jobs") as kind]:
                items = [item for item in reversed(getattr(fake, kind).values())
                         if query.get("sha256", item.get("sha256")) == item.get("sha256")
                         and query.get("state", item["state"]) == item["state"]]  # fmt: skip
                start, count = int(query.get("page_token", 0)), min(fake.page_size, int(query.get("page_size", 50)))
                more = str(start + count) if len(items) > start + count else None
                self._json({"items": items[start : start + count], "next_page_token": more})
            case "GET", [("models" | "datasets") as kind, subject] if subject in getattr(fake, kind):
                self._json(fake.look_at_upload(getattr(fake, kind)[subject]))
            case "GET", ["models", subject, "graph"] if subject in fake.models and fake.has_graphs:
                self._json(GRAPH)
            case "GET", ["datasets", subject, "contact-sheet"] if subject in fake.datasets and fake.has_sheets:
                tag = f'"{hashlib.sha256(SHEET).hexdigest()}"'
                self._send(200, {"Content-Type": "image/png", "ETag": tag}, SHEET)
            case "DELETE", [("models" | "datasets") as kind, subject] if subject in getattr(fake, kind):
                del getattr(fake, kind)[subject]
                self._send(204, {}, b"")
            case "POST", ["recipes", "check"] if fake.recipe_problem is not None:
                self._json(fake.recipe_problem, fake.recipe_problem["status"])
            case "POST", ["recipes", "check"]:
                self._json({"recipe": {"name": body["recipe"]} if isinstance(body["recipe"], str) else body["recipe"]})
            case "POST", ["jobs"] if fake.submit_problem is not None:
                self._json(fake.submit_problem, fake.submit_problem["status"])
            case "POST", ["jobs"] if query.get("dry_run") == "true":
                fake.queries.append(query)
                self._dry_run()
            case "GET", ["dry-runs", "dry_1"]:
                fake.queries.append(query)
                self._dry_run()
            case "DELETE", ["dry-runs", "dry_1"]:
                self._send(204, {}, b"")
            case "POST", ["jobs"]:
                self._json(fake.submit(body), 202)
            case _, ["jobs", job, *rest] if job in fake.jobs:
                self._job(fake.jobs[job], rest, query, body)
            case _:
                self._problem(404, "not_found")

    def _dry_run(self) -> None:
        fake = self.server_state
        fake.dry_run_looks -= 1
        if fake.dry_run_looks < 0:
            return self._json(fake.dry_run)
        self._json({"id": "dry_1", "state": "running", "created_at": WHEN, "links": {}}, 202)

    def _job(self, job: Document, rest: list[str], query: dict[str, str], body: Any) -> None:
        fake = self.server_state
        match rest:
            case []:
                self._json(fake.look_at_job(job))
            case ["cancel"] if job["state"] in OVER:
                self._problem(409, "job_terminal")
            case ["cancel"]:
                job["state"] = "cancelled" if job["state"] == "queued" else "cancelling"
                self._json(job, 202)
            case ["retry"] if job["state"] in ("running", "cancelling"):
                self._problem(409, "job_running")
            case ["retry"]:
                self._json(job if job["state"] == "queued" else fake.clone(job, {}), 202)
            case ["clone"]:
                self._json(fake.clone(job, body or {}), 202)
            case ["events"] if "text/event-stream" in self.headers["Accept"]:
                stream_events(self, fake, job, int(query["after"]))
            case ["events"]:
                limit, after = int(query["limit"]), int(query["after"])
                found = [event for event in fake.events(job) if event["seq"] > after]
                more = found[limit - 1]["seq"] if len(found) > limit else None
                self._json({"items": found[:limit], "next_after": more})
            case ["report"] if job["state"] != "succeeded":
                self._problem(409, "job_not_succeeded")
            case ["report"] if self.headers["Accept"] == "text/markdown":
                self._send(200, {"Content-Type": "text/markdown"}, b"| a | b |\n")
            case ["report"]:
                self._json(report(met=fake.requirements_met))
            case ["artifacts"]:
                names = ["pruned.onnx", *(["pruned.onnx.data"] if fake.two_files else [])]
                self._json({"items": [{"name": name, "sha256": "0" * 64, "bytes": len(PRUNED)} for name in names]})
            case ["artifacts", "pruned.onnx" | "pruned.onnx.data"]:
                self._artifact()
            case _:
                self._problem(404, "not_found")

    def _artifact(self) -> None:
        fake = self.server_state
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and fake.on_range is not None:
            fake.on_range()
        start = int(asked[1]) if asked and self.headers.get("If-Range") == fake.etag else 0
        headers = {"Content-Range": f"bytes {start}-{len(PRUNED) - 1}/{len(PRUNED)}"} if start else {}
        if fake.etag is not None:
            headers["ETag"] = fake.etag
        body, cut = PRUNED[start:], None
        if fake.break_download_after:
            cut = fake.break_download_after.pop(0)
        self._send(206 if start else 200, headers, body, cut)

    def _json(self, document: Any, status: int = 200) -> None:
        kind = "application/json" if status < 400 else "application/problem+json"
        self._send(status, {"Content-Type": kind}, json.dumps(document).encode())

    def _problem(self, status: int, code: str, headers: Document | None = None) -> None:
        document = {"type": "about:blank", "title": code, "status": status, "detail": f"it is {code}", "code": code,
                    "faults": []}  # fmt: skip
        self._send(
            status, {"Content-Type": "application/problem+json", **(headers or {})}, json.dumps(document).encode()
        )

    def _send(self, status: int, headers: Document, body: bytes, cut: int | None = None) -> None:
        if status < 300 and self.command == "POST" and self._key[1]:
            self.server_state.by_key[self._key] = (status, headers, body)
        if getattr(self, "_lose", False):
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True
