"""Pages stay right while rows come and go: nothing twice, nothing missed that was there all the time, nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies
from sqlalchemy import delete

from store import leases, uploads
from store.database import transaction
from store.ids import new_id
from store.records import Artifact, Dataset, Event, Job, Model, OutboxMessage
from tests.api.conftest import RECIPE, Api, problem
from tests.store.conftest import NOW

LISTS = ["models", "datasets", "jobs", "artifacts"]


@dataclass
class List:
    """One list, with a way to put rows into it and to take them out, past the API: that is about pages alone."""

    path: str
    add: Callable[[int], str]
    remove: Callable[[str], None]
    newest_first: bool = True
    name: str = "id"


def a_list(api: Api, kind: str) -> List:
    engine = api.services.engine

    def clear(*tables: Any) -> None:
        with transaction(engine) as session:
            for table in tables:
                session.execute(delete(table))

    def remove(table: Any) -> Callable[[str], None]:
        def take(row_id: str) -> None:
            with transaction(engine) as session:
                session.execute(delete(table).where((table.name if table is Artifact else table.id) == row_id))

        return take

    def upload(number: int, owner: str = "ann") -> str:
        with transaction(engine) as session:
            common: dict[str, Any] = {"owner": owner, "bytes": 1, "options": {}}
            content = f"{number:064x}"
            if kind == "models":
                return uploads.create_model(session, sha256=content, filename="m.onnx", format="onnx", **common)[0].id
            return uploads.create_dataset(session, sha256=content, filename="d.npz", format="npz", **common)[0].id

    def job(number: int, owner: str = "ann") -> str:
        with transaction(engine) as session:
            row = Job(
                id=new_id("job"), owner=owner, name=str(number), kind="prune", tags=[], model_id="mdl_1",
                dataset_ids=[], recipe=RECIPE, requirements={}, device="cpu", queue="cpu", run_seconds_limit=1,
                created_at=NOW,
            )  # fmt: skip
            session.add(row)
            return row.id

    clear(OutboxMessage, Artifact, Event)
    if kind == "artifacts":
        clear(Model, Dataset)
        job_id = api.job()
        with transaction(engine) as session:
            lease = leases.claim(session, job_id, "host:1", "cpu")
            assert lease is not None

        def artifact(number: int, owner: str = "ann") -> str:
            name = f"{(number * 37) % 1_000:03}/größer {number}.onnx"  # anywhere in the order
            with transaction(engine) as session:
                leases.add_artifact(session, lease, name, "output", "a" * 64, 1, "text/plain")
            return name

        return List(f"/v1/jobs/{job_id}/artifacts", artifact, remove(Artifact), newest_first=False, name="name")
    if kind == "jobs":
        with transaction(engine) as session:
            session.execute(delete(Job).where(Job.state == "queued"))
        job(0, "bob")
        return List("/v1/jobs", job, remove(Job))
    table = Model if kind == "models" else Dataset
    clear(table)
    upload(0, "bob")
    return List(f"/v1/{kind}", upload, remove(table))


STEPS = strategies.lists(
    strategies.tuples(strategies.sampled_from(["add", "remove", "page"]), strategies.integers(0, 30)), max_size=12
)


@pytest.mark.parametrize("kind", LISTS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(page_size=strategies.integers(1, 6), before=strategies.integers(0, 8), steps=STEPS)
def test_pages_stay_right(api: Api, kind: str, page_size: int, before: int, steps: list[tuple[str, int]]) -> None:
    listed = a_list(api, kind)
    there = [listed.add(number) for number in range(1, before + 1)]
    always, ever = set(there), set(there)
    seen: list[str] = []
    token, number, done = None, before, False

    def turn() -> None:
        nonlocal token, done
        if done:
            return
        answer = api.http.get(listed.path, params={"page_size": page_size} | ({"page_token": token} if token else {}))
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["items"]) <= page_size
        seen.extend(item[listed.name] for item in page["items"])
        token = page["next_page_token"]
        done = token is None

    for step, choice in steps:
        if step == "page":
            turn()
        elif step == "add":
            number += 1
            there.append(listed.add(number))
            ever.add(there[-1])
        elif there:
            gone = there.pop(choice % len(there))
            always.discard(gone)
            listed.remove(gone)
    while not done:
        turn()
    assert len(set(seen)) == len(seen), "nothing twice"
    assert always <= set(seen), "nothing is missed that was there all the time"
    assert seen == sorted(seen, reverse=listed.newest_first)
    assert set(seen) <= ever, "nobody else's"


def test_events_stay_right_while_more_come(api: Api) -> None:
    job_id = api.job()
    with transaction(api.services.engine) as session:
        lease = leases.claim(session, job_id, "host:1", "cpu")
        assert lease is not None
    seen: list[int] = []
    after: int | None = 0
    more = iter([3, 0, 5, 1])
    while after is not None:
        page = api.http.get(f"/v1/jobs/{job_id}/events", params={"after": after, "limit": 2}).json()
        seen += [event["seq"] for event in page["items"]]
        with transaction(api.services.engine) as session:
            leases.append_events(session, lease, [("x", {})] * next(more, 0))
        after = page["next_after"]
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) >= 2


@pytest.mark.parametrize("kind", ["models", "datasets", "jobs"])
def test_a_token_of_another_list_is_refused_and_anothers_is_harmless(api: Api, kind: str) -> None:
    ids = {"models": api.model(), "datasets": api.dataset(), "jobs": api.job()}
    for other, row_id in ids.items():
        answer = api.http.get(f"/v1/{kind}", params={"page_token": row_id})
        if other == kind:
            assert answer.json()["items"] == []
        else:
            problem(answer, 400, "parameter_invalid")
    theirs = {
        "models": lambda: api.other.post("/v1/models", params={"filename": "m.onnx"}, content=b"x"),
        "datasets": lambda: api.other.post("/v1/datasets", json={"uri": "builtin:digits"}),
        "jobs": None,
    }[kind]
    if theirs is not None:
        token = theirs().json()["id"]  # a place in time, and no more
        items = api.http.get(f"/v1/{kind}", params={"page_token": token}).json()["items"]
        assert [item["id"] for item in items] == [ids[kind]]
    for odd in ("x", "%00", "job_", f"{ids[kind]} ", ids[kind].upper(), "' OR 1=1 --"):
        problem(api.http.get(f"/v1/{kind}", params={"page_token": odd}), 400, "parameter_invalid")


def test_artifacts_and_recipes_take_any_name_for_a_token(api: Api) -> None:
    job_id = api.job()
    for odd in ("x", "\u00e4 b/c.onnx", "%", "'"):
        answer = api.http.get(f"/v1/jobs/{job_id}/artifacts", params={"page_token": odd})
        assert answer.json() == {"items": [], "next_page_token": None}
    names = [item["name"] for item in api.http.get("/v1/recipes").json()["items"]]
    later = api.http.get("/v1/recipes", params={"page_token": names[0] + "-"}).json()["items"]
    assert [item["name"] for item in later] == [name for name in names if name > names[0] + "-"]
    problem(api.http.get("/v1/recipes", params={"page_token": "../x"}), 400, "parameter_invalid")
