"""The served OpenAPI document, held against the server by schemathesis: every operation, with a key.

No 5xx, no answer that the document does not describe, and a 2xx of every operation. A thread plays the worker, so that
uploads become ready; ids that must exist are those of records made beforehand.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from api import listen
from store import dry_runs
from store.database import reading, transaction
from store.keys import SCOPES, add_key, new_secret
from store.records import Dataset, Model
from store.settings import Settings
from tests.api.conftest import DATASET_SUMMARY, MODEL_SUMMARY, RECIPE, Api
from tests.worker.house import wait_for
from tests.worker.reports import GRAPH, PNG, REPORT

ROOT = Path(__file__).parent.parent.parent
HOOKS = Path(__file__).with_name("contract_hooks.py")
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method", "allow_header_conformance", "ignored_auth",
)  # fmt: skip
EXAMPLES = 10
FILES = {
    "report.json": ("application/json", json.dumps(REPORT).encode()),
    "report.md": ("text/markdown; charset=utf-8", b"| a | b |"),
    "pruned.onnx": ("application/octet-stream", b"a network"),
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"long_poll_seconds": 0.1})


@contextmanager
def served(api: Api) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(api.app, http=listen.Connection, log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@contextmanager
def worked(api: Api, folder: Path) -> Iterator[None]:
    """Whatever is to be checked, is ready before long."""
    done = threading.Event()
    (folder / "graph.json").write_text(json.dumps(GRAPH))
    (folder / "sheet.png").write_bytes(PNG)
    graph, sheet = (api.services.artifacts.put_file(folder / name) for name in ("graph.json", "sheet.png"))

    def work() -> None:
        while not done.wait(0.05):
            with reading(api.services.engine) as session:
                ids = [
                    row.id
                    for table in (Model, Dataset)
                    for row in session.query(table).where(table.state == "checking")
                ]
            for subject_id in ids:
                is_model = subject_id.startswith("mdl_")
                summary = MODEL_SUMMARY if is_model else DATASET_SUMMARY
                try:
                    api.check(subject_id, summary=summary, graph=graph, contact_sheet=sheet)
                except AssertionError:  # deleted meanwhile
                    continue

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(20)


def identifiers(api: Api, folder: Path) -> dict[str, str]:
    """Of the records that the operations are about."""
    ids = {
        "model": api.model(ready=False), "dataset": api.dataset(ready=False), "artifact": "pruned.onnx",
        "recipe": "filter_norm_half",
        "old_model": api.model(b"to be deleted", ready=False),
        "old_dataset": api.dataset(ready=False, splits={"seed": 7}),
    }  # fmt: skip
    for name, subject_id in ids.items():
        if name not in ("artifact", "recipe"):
            kind = "models" if subject_id.startswith("mdl_") else "datasets"
            wait_for(lambda path=f"/v1/{kind}/{subject_id}": api.http.get(path).json()["state"] == "ready")
    ids |= {"job": api.job(), "queued": api.job(), "queued_too": api.job()}
    api.succeed(ids["job"], FILES, folder)
    given = {"model_id": ids["model"], "dataset_ids": [ids["dataset"]], "recipe": RECIPE, "requirements": {}}
    with transaction(api.services.engine) as session:
        for name in ("key", "old_key"):
            ids[name] = add_key(session, new_secret(), owner="ann", name=name).id
        for name in ("dry_run", "old_dry_run"):
            ids[name] = dry_runs.create(session, owner="ann", elsewhere=False, wait=600, **given).id
    return ids


def answers(report: Path) -> dict[str, set[int]]:
    """The statuses that each operation answered with."""
    found: dict[str, set[int]] = {}
    for line in report.read_text().splitlines():
        ((kind, body),) = json.loads(line).items()
        if kind == "ScenarioFinished":
            recorder = body["recorder"]
            statuses = found.setdefault(recorder["label"], set())
            for interaction in recorder.get("interactions", {}).values():
                if interaction.get("response"):
                    statuses.add(interaction["response"]["status_code"])
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_contract(api: Api, tmp_path: Path) -> None:
    secret = new_secret()
    with transaction(api.services.engine) as session:
        add_key(session, secret, owner="ann", name="contract", scopes=SCOPES)
    report = tmp_path / "report.ndjson"
    with worked(api, tmp_path), served(api) as url:
        ids = identifiers(api, tmp_path)
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json",
            "--header", f"Authorization: Bearer {secret}", "--checks", ",".join(CHECKS),
            "--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", "1", "--no-color",
            "--generation-database", "none", "--continue-on-failure", "--request-timeout", "20",
            "--report", "ndjson", "--report-ndjson-path", str(report),
        ]  # fmt: skip
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        told = {"SCHEMATHESIS_HOOKS": "tests.api.contract_hooks", "CONTRACT_IDS": json.dumps(ids), "PYTHONPATH": path}
        run = subprocess.run(command, env=os.environ | told, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    operations = {
        f"{method.upper()} {path}" for path, methods in api.app.openapi()["paths"].items() for method in methods
    }
    found = answers(report)
    assert set(found) == operations, "every operation was tried"
    never = {name: sorted(statuses) for name, statuses in found.items() if not any(200 <= x < 300 for x in statuses)}
    assert never == {}, "every operation reaches a 2xx"


def bare(schema: Any, components: dict[str, Any]) -> bool:
    """Whether a schema says nothing about what is in an object."""
    while "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema or "oneOf" in schema:
        return any(bare(part, components) for part in schema.get("anyOf", []) + schema.get("oneOf", []))
    if schema.get("type") == "array":
        return bare(schema.get("items", {}), components)
    return schema.get("type", "object") == "object" and not schema.get("properties")


def test_no_response_is_a_bare_object(api: Api) -> None:
    document = api.app.openapi()
    components = document["components"]["schemas"]
    assert bare({"type": "object", "additionalProperties": True}, components), "the test can fail"
    found, seen = [], 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                for media_type, content in response.get("content", {}).items():
                    seen += 1
                    if media_type.endswith("json") and bare(content.get("schema", {}), components):
                        found.append(f"{method} {path} {status}")
    assert found == []
    assert seen > len(document["paths"])
