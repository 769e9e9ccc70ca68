"""GET /v1/models/{id}/graph: what a model is made of."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from api.openapi import GRAPH_EXAMPLE
from core.graph_report import NetworkGraph
from tests.api.conftest import MODEL_SUMMARY, Api, problem

CONTENT = json.dumps(GRAPH_EXAMPLE).encode()


@pytest.fixture
def stored(api: Api, tmp_path: Path) -> tuple[str, int]:
    (tmp_path / "graph.json").write_bytes(CONTENT)
    return api.services.artifacts.put_file(tmp_path / "graph.json")


def test_the_graph_is_what_the_worker_stored(api: Api, stored: tuple[str, int]) -> None:
    model = api.model(ready=False)
    summary = MODEL_SUMMARY | {"graph": GRAPH_EXAMPLE["totals"]}
    api.check(model, summary=summary, graph=stored)
    answer = api.reader.get(f"/v1/models/{model}/graph")
    assert (answer.status_code, answer.json()) == (200, GRAPH_EXAMPLE)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["etag"] == f'"{stored[0]}"'
    assert "content-disposition" not in answer.headers
    again = api.http.get(f"/v1/models/{model}/graph", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert api.http.get(f"/v1/models/{model}").json()["summary"]["graph"] == GRAPH_EXAMPLE["totals"]
    problem(api.other.get(f"/v1/models/{model}/graph"), 404, "not_found")


def test_a_model_that_is_being_checked(api: Api) -> None:
    model = api.model(ready=False)
    answer = api.http.get(f"/v1/models/{model}/graph")
    assert model in problem(answer, 409, "input_not_ready")["detail"]
    assert answer.headers["retry-after"] == "2"


def test_waiting_for_the_check(api: Api, stored: tuple[str, int]) -> None:
    model = api.model(ready=False)

    def check() -> None:
        time.sleep(0.3)
        api.check(model, summary=MODEL_SUMMARY, graph=stored)

    thread = threading.Thread(target=check)
    thread.start()
    answer = api.http.get(f"/v1/models/{model}/graph", params={"wait": 10})
    thread.join()
    assert answer.json() == GRAPH_EXAMPLE


def test_a_model_that_was_refused_says_why(api: Api) -> None:
    model = api.model(ready=False)
    fault = {"pointer": "/graph/node/n1", "message": "unknown operator Einsum", "expected": None}
    api.check(model, error={"code": "operator_unknown", "message": "Einsum is not on the list", "faults": [fault]})
    document = problem(api.http.get(f"/v1/models/{model}/graph"), 409, "input_refused")
    assert document["detail"] == "the model was refused (operator_unknown): Einsum is not on the list"
    assert document["faults"] == [fault]


def test_a_model_from_before_graphs_were_described(api: Api) -> None:
    model = api.model()
    document = problem(api.http.get(f"/v1/models/{model}/graph"), 404, "not_found")
    assert "add it again" in document["detail"]


def test_a_graph_that_is_gone_from_the_storage(api: Api, stored: tuple[str, int]) -> None:
    model = api.model(ready=False)
    api.check(model, summary=MODEL_SUMMARY, graph=stored)
    api.services.artifacts.delete(stored[0])
    problem(api.http.get(f"/v1/models/{model}/graph"), 500, "artifact_missing")


def test_the_documented_example_is_one(api: Api) -> None:
    operation = api.http.get("/openapi.json").json()["paths"]["/v1/models/{model_id}/graph"]["get"]
    content = operation["responses"]["200"]["content"]["application/json"]
    assert NetworkGraph.model_validate(content["example"]) == NetworkGraph.model_validate(GRAPH_EXAMPLE)
    assert content["schema"] == {"$ref": "#/components/schemas/NetworkGraph"}
