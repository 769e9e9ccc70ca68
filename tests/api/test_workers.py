"""Which workers there are, what others may know of them, and the devices that they bring."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from store import workers
from store.columns import now_utc
from store.database import transaction
from store.ids import new_id
from store.workers import Identity
from tests.api.conftest import RECIPE, Api, pointers, problem


def join(api: Api, name: str, *queues: str, device: str | None = "cpu", subject: str | None = None,
         silent: bool = False) -> str:  # fmt: skip
    """A worker that is there now, or was a minute ago; its id."""
    who = Identity(new_id("wrk"), name, "gpu-box", queues or ("cpu",), device, "0.1.0")
    now = now_utc() - timedelta(seconds=60 if silent else 0)
    with transaction(api.services.engine) as session:
        workers.beat(session, who, started_at=now, seconds=30, subject_id=subject, now=now)
    return who.id


def shown(api: Api, **params: Any) -> list[dict[str, Any]]:
    answer = api.reader.get("/v1/workers", params=params)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def test_the_workers_that_are_there(api: Api) -> None:
    assert shown(api) == []
    join(api, "one", silent=True)
    worker_id = join(api, "two", "gpu", "gpu-1", device="cuda:1")
    two, one = shown(api)
    assert two == {
        "id": worker_id, "name": "two", "host": "gpu-box", "queues": ["gpu", "gpu-1"], "device": "cuda:1",
        "version": "0.1.0", "state": "alive", "busy": False, "works_on": None, "started_at": two["started_at"],
        "seen_at": two["seen_at"],
    }  # fmt: skip
    assert (one["name"], one["state"]) == ("one", "silent")


def test_what_a_worker_works_on_is_told_to_its_owner_alone(api: Api) -> None:
    job_id, model = api.job(), api.model(b"another", ready=False)
    join(api, "one", subject=job_id)
    join(api, "two", "inspect", device=None, subject=model)
    assert [(worker["busy"], worker["works_on"]) for worker in shown(api)] == [(True, model), (True, job_id)]
    others = api.other.get("/v1/workers")
    assert [(worker["busy"], worker["works_on"]) for worker in others.json()["items"]] == [(True, None), (True, None)]
    assert job_id not in others.text
    assert model not in others.text
    problem(api.nobody.get("/v1/workers"), 401, "unauthenticated")


def test_pages(api: Api) -> None:
    ids = [join(api, f"{number}") for number in range(5)]
    first = api.http.get("/v1/workers", params={"page_size": 3}).json()
    second = api.http.get("/v1/workers", params={"page_size": 3, "page_token": first["next_page_token"]}).json()
    assert [worker["id"] for worker in first["items"] + second["items"]] == ids[::-1]
    assert second["next_page_token"] is None
    problem(api.http.get("/v1/workers", params={"page_token": "x"}), 400, "parameter_invalid")


def test_a_device_is_there_as_long_as_its_worker(api: Api) -> None:
    """Besides those that the operator names (here: cpu)."""
    refused = problem(api.submit(device="cuda:1"), 422, "request_invalid")
    assert pointers(refused) == {"/device"}
    join(api, "gone", "gpu", "gpu-1", device="cuda:1", silent=True)
    problem(api.submit(device="cuda:1"), 422, "request_invalid")
    join(api, "there", "gpu", "gpu-1", device="cuda:1")
    assert api.submit(device="cuda:1").status_code == 202
    refused = problem(api.submit(device="cuda:2"), 422, "request_invalid")
    assert refused["faults"][0]["expected"] == "auto, cpu, cuda:1"


def test_auto_means_a_gpu_once_one_has_joined(api: Api) -> None:
    """What trains on the CPU cannot be had in float16, and can on the GPU."""
    body = {"recipe": RECIPE | {"training": {"precision": "float16"}}}
    assert pointers(problem(api.http.post("/v1/recipes/check", json=body), 422, "recipe_invalid"))
    join(api, "inspector", "inspect", device=None)
    join(api, "cpu", device="cpu")
    problem(api.http.post("/v1/recipes/check", json=body), 422, "recipe_invalid")
    join(api, "gpu", "gpu", "gpu-0", device="cuda:0")
    assert api.http.post("/v1/recipes/check", json=body).status_code == 200
