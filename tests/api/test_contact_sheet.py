"""GET /v1/datasets/{id}/contact-sheet: some images of each class."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.api.conftest import DATASET_SUMMARY, Api, problem
from tests.worker.reports import PNG


@pytest.fixture
def stored(api: Api, tmp_path: Path) -> tuple[str, int]:
    (tmp_path / "contact_sheet.png").write_bytes(PNG)
    return api.services.artifacts.put_file(tmp_path / "contact_sheet.png")


def test_the_sheet_is_what_the_worker_stored(api: Api, stored: tuple[str, int]) -> None:
    dataset = api.dataset(ready=False)
    here = f"/v1/datasets/{dataset}/contact-sheet"
    assert api.http.get(f"/v1/datasets/{dataset}").json()["links"] == {
        "self": f"/v1/datasets/{dataset}", "contact_sheet": None
    }  # fmt: skip
    api.check(dataset, summary=DATASET_SUMMARY, contact_sheet=stored)
    assert api.http.get(f"/v1/datasets/{dataset}").json()["links"]["contact_sheet"] == here
    answer = api.reader.get(here)
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["etag"] == f'"{stored[0]}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = api.http.get(here, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_it_is_its_owners_alone(api: Api, stored: tuple[str, int]) -> None:
    dataset = api.dataset(ready=False)
    api.check(dataset, summary=DATASET_SUMMARY, contact_sheet=stored)
    problem(api.other.get(f"/v1/datasets/{dataset}/contact-sheet"), 404, "not_found")
    problem(api.nobody.get(f"/v1/datasets/{dataset}/contact-sheet"), 401, "unauthenticated")


def test_a_dataset_that_is_being_checked_is_waited_for(api: Api, stored: tuple[str, int]) -> None:
    dataset = api.dataset(ready=False)
    here = f"/v1/datasets/{dataset}/contact-sheet"
    assert dataset in problem(api.http.get(here), 409, "input_not_ready")["detail"]

    def check() -> None:
        time.sleep(0.3)
        api.check(dataset, summary=DATASET_SUMMARY, contact_sheet=stored)

    thread = threading.Thread(target=check)
    thread.start()
    answer = api.http.get(here, params={"wait": 10})
    thread.join()
    assert answer.content == PNG


def test_a_dataset_that_was_refused_says_why(api: Api) -> None:
    dataset = api.dataset(ready=False)
    fault = {"pointer": "/file/cat", "message": "no images", "expected": None}
    api.check(dataset, error={"code": "dataset_unsuitable", "message": "it is empty", "faults": [fault]})
    document = problem(api.http.get(f"/v1/datasets/{dataset}/contact-sheet"), 409, "input_refused")
    assert document["detail"] == "the dataset was refused (dataset_unsuitable): it is empty"
    assert document["faults"] == [fault]


def test_a_dataset_without_one(api: Api, stored: tuple[str, int]) -> None:
    dataset = api.dataset()
    document = problem(api.http.get(f"/v1/datasets/{dataset}/contact-sheet"), 404, "not_found")
    assert "no contact sheet" in document["detail"]
    problem(api.http.get("/v1/datasets/ds_none/contact-sheet"), 404, "not_found")
    other = api.dataset(ready=False, splits={"seed": 1})
    api.check(other, summary=DATASET_SUMMARY, contact_sheet=stored)
    api.services.artifacts.delete(stored[0])
    problem(api.http.get(f"/v1/datasets/{other}/contact-sheet"), 500, "artifact_missing")


def test_it_is_documented(api: Api) -> None:
    operation = api.http.get("/openapi.json").json()["paths"]["/v1/datasets/{dataset_id}/contact-sheet"]["get"]
    assert operation["responses"]["200"]["content"] == {"image/png": {"schema": {"type": "string", "format": "binary"}}}
