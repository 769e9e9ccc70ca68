"""Every route of the OpenAPI document: closed without a key, without the scope, and to another owner.

A new route is walked by itself. One with an id or a body that is not known here fails, until it says in `NAMES` or
`BODIES` what another owner would put there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import docs_page
from api.auth import OPEN_PATHS
from store import dry_runs
from store.columns import now_utc
from store.database import transaction
from store.keys import SCOPES
from tests.api.conftest import RECIPE, Api, TestClient, problem

CONTENT = b"a model of Ann's"
READING = {"get", "head", "options"}
OTHER_SCOPES = {"/v1/keys": "keys", "/v1/keys/{key_id}": "keys", "/metrics": "metrics"}
"""What is not read by `read` and written by `write`."""
ADMINS = {"keys", "metrics"}
SHARED = {"name"}
"""Parameters of a path that name nothing of an owner by themselves: a file of a job, a recipe."""
UNLISTED = [("get", "/openapi.json"), *(("get", path) for path in sorted(docs_page.PATHS))]
"""Routes that the document leaves out."""


@dataclass
class Anns:
    """What Ann has, by the name of the parameter that takes its id."""

    ids: dict[str, str]
    sha256: str = hashlib.sha256(CONTENT).hexdigest()
    bobs: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def anns(api: Api, tmp_path: Path) -> Anns:
    """Ann has one of each, and a job that is done; Bob has a model and a dataset, ready."""
    model, dataset = api.model(CONTENT), api.dataset(splits={"seed": 7})
    job = api.job(model=model, datasets=[dataset])
    left = {"pruned.onnx": ("application/octet-stream", b"pruned"), "report.json": ("application/json", b"{}")}
    api.succeed(job, left, tmp_path)
    key = api.key("ops", "admin").get("/v1/keys?owner=ann").json()["items"][0]["id"]
    found = Anns({"model_id": model, "dataset_id": dataset, "job_id": job, "key_id": key})
    with transaction(api.services.engine) as session:
        found.ids["dry_run_id"] = dry_runs.create(
            session, owner="ann", model_id=model, dataset_ids=[dataset], recipe=RECIPE, requirements={},
            elsewhere=False, wait=600,
        ).id  # fmt: skip
    ann, api.http = api.http, api.other
    found.bobs = {"model": api.model(b"a model of Bob's"), "dataset": api.dataset()}
    api.http = ann
    return found


def operations(api: Api) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, found in api.app.openapi()["paths"].items():
        for method, operation in found.items():
            yield method, path, operation


def names_of(operation: dict[str, Any]) -> set[str]:
    return {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}


def filled(path: str, ids: dict[str, str], operation: dict[str, Any]) -> str:
    """`path` with Ann's ids in it; a parameter that is not known fails the test."""
    unknown = names_of(operation) - set(ids) - SHARED
    assert not unknown, f"{path}: say in this file what {unknown} stand for, so that another owner can be tried"
    return path.format(**ids, name="pruned.onnx" if "{job_id}" in path else "filter_norm_half")


def ask(http: TestClient, method: str, path: str, body: Any = None) -> httpx.Response:
    answer: httpx.Response = http.request(method.upper(), path, **({} if body is None else {"json": body}))
    return answer


# --- keys ------------------------------------------------------------------------------------------------------------


def test_there_is_no_way_in_without_a_key_that_is_good(api: Api, anns: Anns) -> None:
    ended = api.key("ann", *SCOPES, expires_at=now_utc() - timedelta(seconds=1))
    revoked = api.key("ann", *SCOPES, name="revoked")
    (key,) = (key for key in revoked.get("/v1/keys").json()["items"] if key["name"] == "revoked")
    assert revoked.delete(f"/v1/keys/{key['id']}").status_code == 204
    wrong = TestClient(api.app, headers={"Authorization": "Bearer bh_wrong"})
    closed = 0
    for method, path, operation in [*operations(api), *((method, path, {}) for method, path in UNLISTED)]:
        for http in (api.nobody, wrong, ended, revoked):
            answer = ask(http, method, filled(path, anns.ids, operation))
            if path in OPEN_PATHS:
                assert answer.status_code == 200, path
                continue
            closed += 1
            assert answer.headers["www-authenticate"].startswith("Bearer")
            problem(answer, 401, "unauthenticated")
            if method == "get":
                assert http.head(filled(path, anns.ids, operation)).status_code == 401
    assert closed > 4 * 20
    assert {"/healthz", "/readyz"} <= OPEN_PATHS
    assert not any(path.startswith("/v1/") for path in OPEN_PATHS)
    for nowhere in ("/no/such/place", "/docs/oauth2-redirect", "/healthz/", "/", "//healthz", "/metrics"):
        problem(api.nobody.get(nowhere), 401, "unauthenticated")


def test_every_scope_is_needed_where_it_belongs(api: Api, anns: Anns) -> None:
    """A key with all scopes but the one that a route takes, and those that include it, does not get in; one with that
    scope alone does."""
    seen = set()
    for method, path, operation in operations(api):
        if path in OPEN_PATHS:
            continue
        needed = OTHER_SCOPES.get(path) or ("read" if method in READING else "write")
        seen.add(needed)
        lacking = [scope for scope in SCOPES if scope != needed and not (scope == "admin" and needed in ADMINS)]
        address = filled(path, anns.ids, operation)
        problem(ask(api.key("ann", *lacking), method, address), 403, "scope_missing")
        problem(ask(api.key("ann"), method, address), 403, "scope_missing")
        if method in READING:
            assert ask(api.key("ann", needed), method, address).status_code != 403, path
    assert seen >= {"read", "write", "keys"}


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YTpi", "bh_x", "Bearer bh_wrong", "Bearer \xff", "Bearer a b"]
)
def test_keys_that_are_none(api: Api, header: str) -> None:
    answer = api.nobody.get("/v1/models", headers={"Authorization": header.encode("latin-1")})
    problem(answer, 401, "unauthenticated")


def test_the_scheme_is_read_in_any_case(api: Api) -> None:
    secret = api.http.headers["authorization"].removeprefix("Bearer ")
    assert api.nobody.get("/v1/models", headers={"Authorization": f"bearer  {secret}"}).status_code == 200


# --- ids -------------------------------------------------------------------------------------------------------------


def test_another_owners_id_is_404_wherever_it_may_stand_in_a_path(api: Api, anns: Anns) -> None:
    bob = api.key("bob", "read", "write", "keys")
    nowhere = dict.fromkeys(anns.ids, "x")
    walked = 0
    for method, path, operation in operations(api):
        if not names_of(operation) - SHARED:
            continue
        walked += 1
        body = {} if "requestBody" in operation else None
        problem(ask(bob, method, filled(path, anns.ids, operation), body), 404, "not_found")
        problem(ask(api.key("ann", *SCOPES), method, filled(path, nowhere, operation), body), 404, "not_found")
        if method == "get":
            assert bob.head(filled(path, anns.ids, operation)).status_code in (404, 405), path
    assert walked > 10
    for path in ("/v1/models/{model_id}", "/v1/datasets/{dataset_id}", "/v1/jobs/{job_id}"):
        assert api.http.get(path.format(**anns.ids)).status_code == 200, "all of it is still there"


def test_no_list_shows_what_is_anothers(api: Api, anns: Anns) -> None:
    """Every route without an id, for Bob, with each of its filters that could name something of Ann's."""
    bob = api.key("bob", "read", "write", "keys")
    values = {"sha256": anns.sha256, "owner": "ann", **anns.ids}
    filtered = set()
    for method, path, operation in operations(api):
        if method != "get" or names_of(operation):
            continue
        names = {parameter["name"] for parameter in operation.get("parameters", [])}
        queries = [{}, *({name: values[name]} for name in sorted(names & set(values)))]
        for query in queries:
            answer = bob.get(path, params=query)
            filtered |= set(query)
            assert answer.status_code in (200, 403), f"{path} {query}: {answer.text}"
            for what in (*anns.ids.values(), '"ann"', CONTENT.decode()):
                assert what not in answer.text, f"{path} {query} shows {what}"
            assert anns.sha256 not in answer.text
    assert filtered == {"sha256", "owner"}
    for path, own in (("/v1/models", anns.bobs["model"]), ("/v1/datasets", anns.bobs["dataset"])):
        assert [item["id"] for item in bob.get(path).json()["items"]] == [own]
    for token in anns.ids.values():  # a page behind something of Ann's is one of Bob's own
        assert anns.ids["model_id"] not in bob.get("/v1/models", params={"page_token": token}).text


# --- bodies ----------------------------------------------------------------------------------------------------------


def _jobs(anns: Anns) -> list[tuple[dict[str, Any], set[str]]]:
    """Jobs that Bob asks for with something of Ann's in them, and the pointers to it."""
    model, dataset = anns.bobs["model"], [anns.bobs["dataset"]]
    theirs, data = anns.ids["model_id"], [anns.ids["dataset_id"]]
    weights = RECIPE | {"weights": theirs}
    return [
        ({"model": theirs, "datasets": dataset, "recipe": RECIPE}, {"/model"}),
        ({"model": model, "datasets": data, "recipe": RECIPE}, {"/datasets/0"}),
        ({"model": model, "datasets": dataset, "recipe": weights}, {"/recipe/weights"}),
        ({"model": theirs, "datasets": data, "recipe": weights}, {"/model", "/datasets/0", "/recipe/weights"}),
    ]


def _made(anns: Anns) -> list[tuple[dict[str, Any], set[str]]]:
    return [({"artifact": {"job": anns.ids["job_id"], "name": "pruned.onnx"}}, set())]


BODIES = {
    ("post", "/v1/jobs"): _jobs,
    ("post", "/v1/jobs/{job_id}/clone"): None,
    ("post", "/v1/models"): _made,
    ("post", "/v1/datasets"): None,
    ("post", "/v1/recipes/check"): None,
    ("post", "/v1/keys"): None,
}
"""What a body may name of another owner, with the pointers to it (none: the answer is a plain 404). None: nothing; what
`owner` may be of a new key is in test_keys.py, and what a clone brings along in test_clone.py."""


def test_another_owners_things_cannot_be_named_in_a_body(api: Api, anns: Anns) -> None:
    counted = {
        route: {item["id"] for item in api.other.get(route).json()["items"]}
        for route in ("/v1/models", "/v1/datasets", "/v1/jobs")
    }
    for method, path, operation in operations(api):
        if "requestBody" not in operation:
            continue
        assert (method, path) in BODIES, f"{method} {path}: say in BODIES what of another owner its body may name"
        cases = BODIES[method, path]
        for body, wrong in [] if cases is None else cases(anns):
            answer = ask(api.other, method, path, body)
            code = answer.json()["code"]
            assert code in (("recipe_invalid", "request_invalid") if wrong else ("not_found",))
            document = problem(answer, 422 if wrong else 404, code)
            assert {fault["pointer"] for fault in document["faults"]} == wrong
            unknown = json.loads(json.dumps(body).replace(anns.ids["model_id"], "mdl_none"))
            unknown = json.loads(json.dumps(unknown).replace(anns.ids["dataset_id"], "ds_none"))
            unknown = json.loads(json.dumps(unknown).replace(anns.ids["job_id"], "job_none"))
            told = json.dumps([document["detail"], document["faults"]])
            same = ask(api.other, method, path, unknown).json()
            for name, none in (("model_id", "mdl_none"), ("dataset_id", "ds_none"), ("job_id", "job_none")):
                told = told.replace(anns.ids[name], none)
            assert json.dumps([same["detail"], same["faults"]]) == told, "as for what is nowhere"
    for route, before in counted.items():
        assert {item["id"] for item in api.other.get(route).json()["items"]} == before, "nothing was made"


def test_the_same_bytes_of_two_owners_are_two_models(api: Api, anns: Anns) -> None:
    answer = api.other.post("/v1/models", params={"filename": "m.onnx"}, content=CONTENT)
    assert answer.status_code == 201, "200 would say that somebody has it"
    assert answer.json()["id"] != anns.ids["model_id"]
    assert answer.json()["state"] == "checking"
    assert api.other.delete(f"/v1/models/{answer.json()['id']}").status_code == 204
    assert api.http.get(f"/v1/models/{anns.ids['model_id']}").json()["state"] == "ready"


def test_an_idempotency_key_of_two_owners_is_two_keys(api: Api, anns: Anns) -> None:
    once = {"Idempotency-Key": "once"}
    mine = {"model": anns.ids["model_id"], "datasets": [anns.ids["dataset_id"]], "recipe": RECIPE}
    bobs = {"model": anns.bobs["model"], "datasets": [anns.bobs["dataset"]], "recipe": RECIPE}
    first = api.http.post("/v1/jobs", json=mine, headers=once)
    second = api.other.post("/v1/jobs", json=bobs, headers=once)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] != second.json()["id"]
    assert "idempotent-replayed" not in second.headers
