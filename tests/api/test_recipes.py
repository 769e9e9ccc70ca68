"""Recipes checked before anything is uploaded: the same answers as a job would get."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import RECIPE, Api, pointers, problem

CHECK = "/v1/recipes/check"


def test_a_recipe_comes_back_with_its_defaults(api: Api) -> None:
    body = {"recipe": RECIPE, "requirements": {"accuracy_drop": "<= 0.01"}, "device": "cpu"}
    answer = api.http.post(CHECK, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"recipe": api.submit().json()["recipe"]}
    named = api.http.post(CHECK, json={"recipe": "filter_norm_half"})
    assert named.json() == {"recipe": api.http.get("/v1/recipes/filter_norm_half").json()}


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"recipe": "no_such_recipe"}, {"/recipe"}),
        ({"recipe": 7}, {"/recipe"}),
        ({}, {"/recipe"}),
        ({"recipe": {"steps": [{"method": "x"}], "seed": -1}},
         {"/recipe/steps/0/method", "/recipe/seed"}),
        ({"recipe": {"steps": [{"method": "filter_norm", "target": {"params": 2.5}}]}, "device": "cuda:0",
          "requirements": {"accuracy": "about 3", "speed": "<= 1"}},
         {"/recipe/steps/0/target/params", "/device", "/requirements/accuracy", "/requirements/speed"}),
        ({"recipe": RECIPE, "device": "tpu"}, {"/device"}),
        ({"recipe": RECIPE, "recipes": 3, "requirements": 3}, {"/recipes", "/requirements"}),
    ],
)  # fmt: skip
def test_faults_are_those_of_a_job(api: Api, given: dict[str, Any], wrong: set[str]) -> None:
    code = "recipe_invalid" if all(f"{pointer}/".startswith("/recipe/") for pointer in wrong) else "request_invalid"
    document = problem(api.http.post(CHECK, json=given), 422, code)
    assert pointers(document) == wrong
    body = {"model": api.model(), "datasets": [api.dataset()], **given}
    job = problem(api.http.post("/v1/jobs", json=body), 422, document["code"])
    for faults in (job["faults"], document["faults"]):  # the names of the other fields are not the same
        assert "requirements" in next((f["expected"] for f in faults if f["pointer"] == "/recipes"), "requirements")
        faults[:] = [fault for fault in faults if fault["pointer"] != "/recipes"]
    assert job["faults"] == document["faults"]
    assert job["detail"] == document["detail"]


def test_a_model_is_no_part_of_it(api: Api) -> None:
    document = problem(api.http.post(CHECK, json={"recipe": RECIPE, "model": "mdl_x"}), 422, "request_invalid")
    assert pointers(document) == {"/model"}


def test_what_is_no_request_at_all(api: Api) -> None:
    assert pointers(problem(api.http.post(CHECK, json=[]), 422, "request_invalid")) == {""}
    problem(api.http.post(CHECK, content=b"{}"), 415, "media_type_unsupported")
    problem(api.nobody.post(CHECK, json={"recipe": RECIPE}), 401, "unauthenticated")
