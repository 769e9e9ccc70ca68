"""`Idempotency-Key` on every POST: the same answer again, nothing made twice, failures forgotten."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from api import idempotency as keys
from api.idempotency import Once, answered
from api.schemas.base import Out
from api.schemas.health import Health
from store import idempotency
from store.columns import now_utc
from store.database import reading, transaction
from store.idempotency import HELD, Answer, Slot
from store.records import Dataset, IdempotencyKey, Job, Model
from tests.api.conftest import MODEL_SUMMARY, RECIPE, Api, pointers, problem

KEY = {"Idempotency-Key": "deploy-17"}


def count(api: Api, table: type[Any]) -> int:
    with reading(api.services.engine) as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def same(first: httpx.Response, second: httpx.Response) -> None:
    """The second is the first once more."""
    assert first.status_code < 300, first.text
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert (second.status_code, second.content) == (first.status_code, first.content)
    for name in ("location", "retry-after", "content-type"):
        assert second.headers.get(name) == first.headers.get(name)


# --- each route ------------------------------------------------------------------------------------------------------


def posts(api: Api) -> dict[str, Callable[..., httpx.Response]]:
    """Every POST that makes something, by its path; `other` has it ask for something else."""

    def to(path: str, body: dict[str, Any], other: dict[str, Any]) -> Callable[..., httpx.Response]:
        def post(*, again: bool = True, headers: dict[str, str] = KEY) -> httpx.Response:
            answer: httpx.Response = api.http.post(path, json=body if again else body | other, headers=headers)
            return answer

        return post

    def upload(path: str, filename: str) -> Callable[..., httpx.Response]:
        def post(*, again: bool = True, headers: dict[str, str] = KEY) -> httpx.Response:
            content = b"content" if again else b"other"
            answer: httpx.Response = api.http.post(
                path, params={"filename": filename}, content=content, headers=headers
            )
            return answer

        return post

    job = {"model": api.model(b"of the job"), "datasets": [api.dataset()], "recipe": RECIPE}
    queued = f"/v1/jobs/{api.job()}"
    return {
        "/v1/models": upload("/v1/models", "m.onnx"),
        "/v1/datasets": upload("/v1/datasets", "d.npz"),
        "/v1/jobs": to("/v1/jobs", job, {"name": "other"}),
        "/v1/jobs/{job_id}/clone": to(f"{queued}/clone", {}, {"name": "other"}),
        "/v1/jobs/{job_id}/retry": to(f"{queued}/retry", {}, {"x": 1}),
        "/v1/jobs/{job_id}/cancel": to(f"{queued}/cancel", {}, {"x": 1}),
    }


def test_every_post_gives_its_answer_again_and_makes_nothing_twice(api: Api) -> None:
    calls = posts(api)
    document = api.app.openapi()["paths"]
    assert {path for path, item in document.items() if "post" in item} - {"/v1/recipes/check", "/v1/keys"} == set(
        calls
    ), "of keys: test_keys.py"
    for path, post in calls.items():
        first = post()
        before = [count(api, table) for table in (Model, Dataset, Job)]
        same(first, post())
        assert [count(api, table) for table in (Model, Dataset, Job)] == before, path
        other = post(again=False)
        expected = "request_invalid" if path.endswith(("cancel", "retry")) else "idempotency_key_reused"
        problem(other, 422, expected)
        names = {parameter["name"] for parameter in document[path]["post"]["parameters"]}
        assert "Idempotency-Key" in names
        for status, response in document[path]["post"]["responses"].items():
            assert ("Idempotent-Replayed" in response.get("headers", {})) == status.startswith("2")


def test_without_a_key_it_is_made_again(api: Api) -> None:
    post = posts(api)["/v1/jobs"]
    assert post(headers={}).json()["id"] != post(headers={}).json()["id"]


def test_a_check_keeps_nothing_and_is_answered_again(api: Api) -> None:
    for recipe in ("filter_norm_half", "filter_norm_quick"):
        answer = api.http.post("/v1/recipes/check", json={"recipe": recipe}, headers=KEY)
        assert answer.json()["recipe"]["name"] == recipe
    assert count(api, IdempotencyKey) == 0


def test_the_first_answer_though_things_have_moved_on(api: Api) -> None:
    post = posts(api)["/v1/jobs"]
    first = post()
    api.http.post(f"/v1/jobs/{first.json()['id']}/cancel")
    same(first, post())
    assert post().json()["state"] == "queued"


def test_another_owners_key_is_another(api: Api) -> None:
    body = {"uri": "builtin:digits"}
    first = api.http.post("/v1/datasets", json=body, headers=KEY)
    other = api.other.post("/v1/datasets", json=body, headers=KEY)
    assert "idempotent-replayed" not in other.headers
    assert other.json()["id"] != first.json()["id"]


def test_the_same_key_for_another_job_is_another(api: Api) -> None:
    one, two = api.job(), api.job()
    for job_id in (one, two):
        assert api.http.post(f"/v1/jobs/{job_id}/cancel", headers=KEY).json()["id"] == job_id


@pytest.mark.parametrize("key", ["", "x" * 256, "has space"])
@pytest.mark.parametrize("route", ["/v1/jobs", "/v1/models", "/v1/recipes/check", "/v1/jobs/job_x/retry"])
def test_a_key_that_is_none(api: Api, key: str, route: str) -> None:
    answer = api.http.post(route, json={}, headers={"Idempotency-Key": key})
    assert pointers(problem(answer, 400, "parameter_invalid")) == {"/Idempotency-Key"}


def test_an_address_that_is_too_long_for_any_id(api: Api) -> None:
    problem(api.http.post(f"/v1/jobs/{'x' * 300}/cancel", headers=KEY), 404, "not_found")


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_request_that_was_refused_may_be_put_right(api: Api) -> None:
    body = {"model": api.model(), "datasets": [api.dataset()], "recipe": "x"}
    problem(api.http.post("/v1/jobs", json=body, headers=KEY), 422, "recipe_invalid")
    problem(api.http.post("/v1/jobs", content=b"{", headers=KEY | {"Content-Type": "application/json"}), 400,
            "json_invalid")  # fmt: skip
    assert count(api, IdempotencyKey) == 0
    assert api.http.post("/v1/jobs", json=body | {"recipe": RECIPE}, headers=KEY).status_code == 202


def test_an_upload_that_was_refused_may_be_put_right(api: Api) -> None:
    def post(filename: str, **params: str) -> httpx.Response:
        answer: httpx.Response = api.http.post(
            "/v1/models", params={"filename": filename} | params, content=b"x", headers=KEY
        )
        return answer

    problem(post("m.exe"), 422, "request_invalid")
    problem(post("m.onnx", architecture="resnet20"), 422, "request_invalid")
    assert count(api, IdempotencyKey) == 0
    same(post("m.onnx"), post("m.onnx"))


def test_what_nobody_foresaw_frees_the_key(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"model": api.model(), "datasets": [api.dataset()], "recipe": RECIPE}

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("api.routes.jobs.jobs.create_job", fail)
        problem(api.http.post("/v1/jobs", json=body, headers=KEY), 500, "internal_error")
    assert count(api, IdempotencyKey) == 0
    assert api.http.post("/v1/jobs", json=body, headers=KEY).status_code == 202


def test_a_job_that_is_not_there(api: Api) -> None:
    for what in ("cancel", "retry", "clone"):
        problem(api.http.post(f"/v1/jobs/job_x/{what}", headers=KEY), 404, "not_found")
    assert count(api, IdempotencyKey) == 0


# --- in flight -------------------------------------------------------------------------------------------------------


def _reserved(api: Api, route: str = "POST /v1/jobs", age: float = 0.0) -> idempotency.Reservation:
    with transaction(api.services.engine) as session:
        slot = Slot("ann", route, KEY["Idempotency-Key"])
        found = idempotency.reserve(session, slot, None, now_utc() - age * HELD)
        assert isinstance(found, idempotency.Reservation)
        return found


def test_while_the_first_is_being_answered(api: Api) -> None:
    body = {"model": api.model(), "datasets": [api.dataset()], "recipe": RECIPE}
    _reserved(api)
    answer = api.http.post("/v1/jobs", json=body, headers=KEY)
    problem(answer, 409, "idempotency_key_in_flight")
    assert int(answer.headers["retry-after"]) >= 1


def test_an_upload_while_the_first_comes_in_is_not_written(api: Api) -> None:
    _reserved(api, "POST /v1/models")
    answer = api.http.post("/v1/models", params={"filename": "m.onnx"}, content=b"x", headers=KEY)
    problem(answer, 409, "idempotency_key_in_flight")
    assert not api.settings.uploads_dir.exists(), "nothing was written"


def test_a_server_that_died_holds_its_key_for_a_while_only(api: Api) -> None:
    body = {"model": api.model(), "datasets": [api.dataset()], "recipe": RECIPE}
    _reserved(api, age=1.5)
    answer = api.http.post("/v1/jobs", json=body, headers=KEY)
    assert (answer.status_code, "idempotent-replayed" in answer.headers) == (202, False)


def test_the_same_key_at_the_same_time(api: Api) -> None:
    body = {"model": api.model(), "datasets": [api.dataset()], "recipe": RECIPE}
    answers: list[httpx.Response] = []

    def post() -> None:
        while True:
            answer = api.http.post("/v1/jobs", json=body, headers=KEY)
            if answer.status_code != 409:
                answers.append(answer)
                return
            time.sleep(0.05)  # Retry-After is for those who are not in a test

    threads = [threading.Thread(target=post) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 5
    assert len({answer.content for answer in answers}) == 1
    assert count(api, Job) == 1


def test_a_slow_upload_is_not_taken_for_dead(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "EXTEND_SECONDS", 0.05)
    seen: list[Any] = []

    def expires() -> Any:
        with reading(api.services.engine) as session:
            return session.scalars(select(IdempotencyKey.expires_at)).one()

    def content() -> Iterator[bytes]:
        yield b"x"
        deadline = time.monotonic() + 10
        while len(set(seen)) < 3 and time.monotonic() < deadline:
            seen.append(expires())
            time.sleep(0.05)
        yield b"y"

    async def slowly() -> httpx.Response:
        transport = httpx.ASGITransport(api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=api.http.headers) as http:

            async def body() -> Any:
                for chunk in content():
                    yield chunk
                    await asyncio.sleep(0.05)

            return await http.post("/v1/models", params={"filename": "m.onnx"}, content=body(), headers=KEY)

    answer = asyncio.run(slowly())
    assert answer.status_code == 201, answer.text
    assert sorted(set(seen)) == list(dict.fromkeys(seen)), "further and further"
    assert expires() is None


def test_who_was_taken_for_dead_makes_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reservation is somebody else's when it comes to answer: what it made is rolled back."""
    store = api.services.artifacts.take_over

    def lose(path: Path, sha256: str, size: int) -> None:
        store(path, sha256, size)
        with transaction(api.services.engine) as session:
            session.execute(delete(IdempotencyKey))
        _reserved(api, "POST /v1/models")

    monkeypatch.setattr(api.services.artifacts, "take_over", lose)
    answer = api.http.post("/v1/models", params={"filename": "m.onnx"}, content=b"x", headers=KEY)
    problem(answer, 409, "idempotency_key_in_flight")
    assert (count(api, Model), count(api, IdempotencyKey)) == (0, 1), "the other's reservation stays"


# --- uploads ---------------------------------------------------------------------------------------------------------


def test_an_upload_is_known_by_content_name_and_fields(api: Api) -> None:
    def post(content: bytes = b"x", **params: str) -> httpx.Response:
        answer: httpx.Response = api.http.post(
            "/v1/datasets", params={"filename": "d.npz"} | params, content=content, headers=KEY
        )
        return answer

    first = post()
    same(first, post())
    same(first, post(wait="0.1"))
    same(first, api.http.post("/v1/datasets", files={"file": ("d.npz", b"x")}, headers=KEY))
    assert not list(api.settings.uploads_dir.iterdir()), "no copy stays"
    for other in ({"content": b"y"}, {"filename": "e.npz"}, {"splits": '{"seed": 7}'}):
        problem(post(**other), 422, "idempotency_key_reused")  # type: ignore[arg-type]
    assert count(api, Dataset) == 1


def test_a_replay_stores_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def post() -> httpx.Response:
        answer: httpx.Response = api.http.post("/v1/models", params={"filename": "m.onnx"}, content=b"x", headers=KEY)
        return answer

    first = post()

    def fail(*_: Any) -> None:
        raise AssertionError("stored again")

    monkeypatch.setattr(api.services.artifacts, "take_over", fail)
    same(first, post())
    api.http.delete(first.headers["location"])
    same(first, post())


def test_what_was_waited_for_is_in_the_answer_that_is_given_again(api: Api) -> None:
    def post(wait: str) -> httpx.Response:
        answer: httpx.Response = api.http.post(
            "/v1/models", params={"filename": "m.onnx", "wait": wait}, content=b"x", headers=KEY
        )
        return answer

    def check() -> None:
        deadline = time.monotonic() + 10
        while not (items := api.http.get("/v1/models").json()["items"]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        api.check(items[0]["id"], summary=MODEL_SUMMARY)

    worker = threading.Thread(target=check)
    worker.start()
    first = post("20")
    worker.join()
    assert first.json()["state"] == "ready"
    same(first, post("0"))


# --- the helper ------------------------------------------------------------------------------------------------------


class Shown(Out):
    secret: str = "x"


def test_what_is_shown_once_is_not_kept(api: Api) -> None:
    """As a key's secret: in the first answer alone, and in no record."""
    once = Once(api.services, Slot("ann", "POST /v1/x", "k"))

    def make(session: Session) -> Answer:
        return answered(Health(), 201, {"Location": "/v1/x/1"}, once=Shown())

    first = asyncio.run(once.answer(b"{}", make))
    second = asyncio.run(once.answer(b"{}", make))
    assert (bytes(first.body), first.status_code) == (b'{"secret":"x"}', 201)
    assert (bytes(second.body), second.status_code) == (b'{"status":"ok"}', 201)
    with reading(api.services.engine) as session:
        assert session.scalars(select(IdempotencyKey.body)).one() == '{"status":"ok"}'


def test_the_query_is_part_of_the_request_but_for_wait(api: Api) -> None:
    def known_by(*query: tuple[str, str]) -> str:
        return Once(api.services, None, query).hash_of(b"{}")

    assert known_by(("dry_run", "true")) != known_by() == hashlib.sha256(b"{}").hexdigest()
    body = {"uri": "builtin:digits"}
    first = api.http.post("/v1/datasets?wait=0.01", json=body, headers=KEY)
    same(first, api.http.post("/v1/datasets", json=body, headers=KEY))
