"""Jobs: submitted, and refused with all faults at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from api.submission import _queue
from store.database import reading
from store.records import Job, OutboxMessage
from tests.api.conftest import DATASET_SUMMARY, MODEL_SUMMARY, RECIPE, Api, pointers, problem


def count(api: Api) -> int:
    with reading(api.services.engine) as session:
        return len(session.scalars(select(Job)).all())


def test_a_job_is_queued(api: Api) -> None:
    model, dataset = api.model(), api.dataset()
    answer = api.submit(name="team/first", tags=["x"], requirements={"accuracy_drop": "<= 0.01"}, device="cpu")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["retry-after"] == "1"
    assert (job["state"], job["model"], job["datasets"], job["name"]) == ("queued", model, [dataset], "team/first")
    assert (job["kind"], job["tags"], job["device"], job["progress"]) == ("prune", ["x"], "cpu", 0)
    assert job["recipe"]["steps"][0]["every_epochs"] == 7, "the recipe is resolved"
    assert job["requirements"]["accuracy_drop"] == "<= 0.01"
    assert job["attempts"] == []
    assert api.http.get(job["links"]["self"]).json() == job
    with reading(api.services.engine) as session:
        (message,) = session.scalars(select(OutboxMessage))
        assert (message.topic, message.subject_id, message.queue) == ("run", job["id"], "cpu")


@pytest.mark.parametrize("name", ["filter_norm_half", "filter_norm_quick"])
def test_a_recipe_by_name(api: Api, name: str) -> None:
    job = api.submit(recipe=name).json()
    assert job["recipe"] == api.http.get(f"/v1/recipes/{name}").json()
    assert job["recipe"]["name"] == name


def test_everything_that_is_wrong_is_said_at_once(api: Api) -> None:
    body = {
        "model": "mdl_nothing",
        "datasets": ["ds_nothing"],
        "recipe": {
            "version": 2,
            "training": {"optimizer": {"name": "sgd", "lr": -1}},
            "steps": [{"method": "filter_norm", "ratio_per_round": 2, "target": {"params": 1.5}, "colour": "red"}],
        },
        "requirements": {"accuracy": "about 3", "speed": "<= 1"},
        "device": "cuda:0",
        "tags": ["a", "a"],
        "name": "a\nb",
        "priority": 3,
    }
    document = problem(api.http.post("/v1/jobs", json=body), 422, "request_invalid")
    assert pointers(document) == {
        "/model", "/datasets/0", "/recipe/version", "/recipe/training/optimizer/lr", "/recipe/steps/0/ratio_per_round",
        "/recipe/steps/0/target/params", "/recipe/steps/0/colour", "/requirements/accuracy", "/requirements/speed",
        "/device", "/tags", "/name", "/priority",
    }  # fmt: skip
    assert count(api) == 0


def test_a_recipe_with_five_faults_and_nothing_else(api: Api) -> None:
    recipe = {"version": 2, "seed": -1, "task": "x", "steps": [{"method": "filter_norm"}], "colour": "red"}
    document = problem(api.submit(recipe=recipe), 422, "recipe_invalid")
    assert pointers(document) == {
        "/recipe/version", "/recipe/seed", "/recipe/task", "/recipe/steps/0/target", "/recipe/colour",
    }  # fmt: skip
    assert len(document["faults"]) == 5


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"recipe": "no_such_recipe"}, {"/recipe"}),
        ({"recipe": "../filter_norm_half"}, {"/recipe"}),
        ({"recipe": 7}, {"/recipe"}),
        ({"recipe": None}, {"/recipe"}),
        ({"recipe": []}, {"/recipe"}),
        ({"model": 7}, {"/model"}),
        ({"datasets": []}, {"/datasets"}),
        ({"datasets": "ds_x"}, {"/datasets"}),
        ({"datasets": ["ds_x", "ds_y"]}, {"/datasets", "/datasets/0", "/datasets/1"}),
        ({"device": "tpu"}, {"/device"}),
        ({"device": 3}, {"/device"}),
        ({"kind": ""}, {"/kind"}),
        ({"tags": ["has space"]}, {"/tags/0"}),
        ({"name": "x" * 201}, {"/name"}),
    ],
)
def test_what_cannot_be(api: Api, given: dict[str, Any], wrong: set[str]) -> None:
    code = "recipe_invalid" if wrong == {"/recipe"} else "request_invalid"
    assert pointers(problem(api.submit(**given), 422, code)) == wrong


def test_what_is_missing(api: Api) -> None:
    document = problem(api.http.post("/v1/jobs", json={}), 422, "request_invalid")
    assert pointers(document) == {"/model", "/datasets", "/recipe"}
    for body in ("[]", '"x"', "3", "null"):
        answer = api.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
        (fault,) = problem(answer, 422, "request_invalid")["faults"]
        assert (fault["pointer"], fault["expected"]) == ("", "an object with recipe, model, datasets")


def test_an_unknown_recipe_names_those_that_are_there(api: Api) -> None:
    (fault,) = problem(api.submit(recipe="x"), 422, "recipe_invalid")["faults"]
    assert "filter_norm_half" in fault["expected"]


def test_a_recipe_file_that_is_not_right_is_left_out(api: Api, tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "good.yaml").write_text("steps: [{method: filter_norm, target: {params: 0.5}}]")
    (folder / "bad.yaml").write_text("steps: [")
    (folder / "worse.yaml").write_bytes(b"\xff\xfe")
    (folder / "Not A Name.yaml").write_text("steps: []")
    (folder / "notes.txt").write_text("hello")
    files = type(api.services.recipes)(folder)
    assert list(files.valid()) == ["good"]
    assert files.get("notes") is None
    assert files.get("../recipes/good") is None


@pytest.mark.parametrize("route", ["/v1/jobs", "/v1/recipes/check"])
def test_weights_are_a_model_of_the_same_owner_that_is_ready(api: Api, route: str) -> None:
    there = {"model": api.model(), "datasets": [api.dataset()]} if route == "/v1/jobs" else {}

    def submit(weights: str) -> Any:
        return api.http.post(route, json={**there, "recipe": {**RECIPE, "weights": weights}})

    checkpoint = api.model(b"a checkpoint", ready=False)
    assert checkpoint in problem(submit(checkpoint), 409, "input_not_ready")["detail"]
    theirs = api.other.post("/v1/models", params={"filename": "m.onnx"}, content=b"theirs").json()["id"]
    for missing in (theirs, "mdl_none"):
        (fault,) = problem(submit(missing), 422, "recipe_invalid")["faults"]
        assert (fault["pointer"], fault["message"]) == ("/recipe/weights", f"there is no model {missing}")
    refused = api.model(b"refused", ready=False)
    api.check(refused, error={"code": "model_refused", "message": "a sparse tensor", "faults": []})
    (fault,) = problem(submit(refused), 422, "recipe_invalid")["faults"]
    assert fault["pointer"] == "/recipe/weights"
    assert "a sparse tensor" in fault["message"]
    assert pointers(problem(submit("trained"), 422, "recipe_invalid")) == {"/recipe/weights"}
    api.check(checkpoint, summary=MODEL_SUMMARY)
    answer = submit(checkpoint)
    assert answer.status_code in (200, 202), answer.text
    recipe = answer.json()["recipe"]
    assert recipe["weights"] == checkpoint
    if route == "/v1/jobs":
        assert answer.json()["id"] in problem(api.http.delete(f"/v1/models/{checkpoint}"), 409, "in_use")["detail"]


def test_weights_of_another_network_are_refused_at_once(api: Api) -> None:
    model, other = api.model(b"one", ready=False), api.model(b"two", ready=False)
    api.check(model, summary=MODEL_SUMMARY | {"layers": 20, "filters": 688})
    api.check(other, summary=MODEL_SUMMARY | {"layers": 32, "filters": 688})
    answer = api.submit(model=model, recipe={**RECIPE, "weights": other})
    (fault,) = problem(answer, 422, "recipe_invalid")["faults"]
    assert (fault["pointer"], fault["message"]) == ("/recipe/weights", "it has 32 layers, the job's model 20")
    api.job(model=model, recipe={**RECIPE, "weights": model})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"outputs": [{"name": "logits", "shape": ["n", 7]}]},
         ["its outputs are (n, 7), those of the job's model (n, 10)"]),
        ({"outputs": [{"name": "y", "shape": ["n", 10]}] * 2},
         ["its outputs are (n, 10), (n, 10), those of the job's model (n, 10)"]),
        ({"inputs": [{"name": "x", "shape": ["n", 3, 8, 8]}]},
         ["its inputs are (n, 3, 8, 8), those of the job's model (n, 1, 8, 8)"]),
        ({"inputs": [{"name": "image", "shape": [1, 1, "h", "w"]}]}, []),
        ({"params": 1235, "format": "onnx"}, ["it has 1,235 params, the job's model 1,234"]),
        ({"params": 1235, "format": "pt2"}, []),
        ({"inputs": "?"}, []),
    ],
)  # fmt: skip
def test_weights_of_other_shapes_are_refused_at_once(api: Api, changed: dict[str, Any], told: list[str]) -> None:
    model, other = api.model(b"one", ready=False), api.model(b"two", ready=False)
    api.check(model, summary=MODEL_SUMMARY | {"format": "onnx"})
    api.check(other, summary=MODEL_SUMMARY | changed)
    answer = api.submit(model=model, recipe={**RECIPE, "weights": other})
    if told:
        faults = problem(answer, 422, "recipe_invalid")["faults"]
        assert [(fault["pointer"], fault["message"]) for fault in faults] == [
            ("/recipe/weights", text) for text in told
        ]
    else:
        assert answer.status_code == 202, answer.text


@pytest.mark.parametrize("route", ["/v1/jobs", "/v1/recipes/check"])
def test_what_the_task_does_not_measure_cannot_be_required(api: Api, route: str) -> None:
    there = {"model": api.model(), "datasets": [api.dataset()]} if route == "/v1/jobs" else {}

    def refused(task: str, *names: str, **more: Any) -> set[str]:
        required = dict.fromkeys(("accuracy", *names), ">= 0.5")
        body = {**there, "recipe": {**RECIPE, "task": task}, "requirements": required, **more}
        return pointers(problem(api.http.post(route, json=body), 422, "request_invalid"))

    assert refused("classification", "ssim", "cosine", "top_5") == {"/requirements/ssim", "/requirements/cosine"}
    assert refused("imitation", "top_5", "cosine") == {"/requirements/top_5"}
    assert refused("imitation", "top_5", device="tpu") == {"/requirements/top_5", "/device"}
    body = {**there, "recipe": RECIPE, "requirements": {"top_5": ">= 0.5"}}
    assert api.http.post(route, json=body).status_code in (200, 202)


@pytest.mark.parametrize(("classes", "fits"), [(5, False), (6, True)])
def test_top_5_of_five_classes_cannot_be_required(api: Api, classes: int, fits: bool) -> None:
    model, dataset = api.model(ready=False), api.dataset(ready=False)
    api.check(model, summary=MODEL_SUMMARY | {"outputs": [{"name": "y", "shape": ["n", classes]}]})
    api.check(dataset, summary=DATASET_SUMMARY | {"classes": [str(number) for number in range(classes)]})
    required = {"requirements": {"top_5": ">= 0.9"}}
    for given, pointer in (
        (required, "/requirements/top_5"),
        ({"recipe": RECIPE | required}, "/recipe/requirements/top_5"),
        ({"recipe": RECIPE | required} | required, "/requirements/top_5"),
    ):
        answer = api.submit(model=model, datasets=[dataset], **given)
        if fits:
            assert answer.status_code == 202, answer.text
        else:
            (fault,) = answer.json()["faults"]
            assert (answer.status_code, fault["pointer"]) == (422, pointer)
            assert fault["message"] == "top-5 accuracy is measured on more than 5 classes, the dataset has 5"


def test_a_new_classifier_is_for_any_number_of_classes(api: Api) -> None:
    model = api.model(b"of a thousand", ready=False)
    api.check(model, summary=MODEL_SUMMARY | {"outputs": [{"name": "y", "shape": ["n", 1000]}]})
    train = {"method": "train", "epochs": 1}
    recipe = {"head": "replace", "steps": [train, *RECIPE["steps"]]}
    assert pointers(problem(api.submit(model=model), 422, "request_invalid")) == {"/datasets/0/preprocess/class_order"}
    api.job(model=model, recipe=recipe)
    maps = api.model(b"of maps", ready=False)
    api.check(maps, summary=MODEL_SUMMARY | {"outputs": [{"name": "y", "shape": ["n", 3, 8, 8]}]})
    assert pointers(problem(api.submit(model=maps, recipe=recipe), 422, "request_invalid")) == {"/model"}
    answer = api.submit(model=model, recipe={**recipe, "steps": RECIPE["steps"]})
    assert pointers(problem(answer, 422, "recipe_invalid")) == {"/recipe/steps"}


def test_the_input_must_be_ready(api: Api) -> None:
    model = api.model(b"unchecked", ready=False)
    answer = api.submit(model=model)
    assert model in problem(answer, 409, "input_not_ready")["detail"]
    assert answer.headers["retry-after"]
    api.check(model, error={"code": "operator_unknown", "message": "NonMaxSuppression is not known", "faults": []})
    (fault,) = problem(api.submit(model=model), 422, "request_invalid")["faults"]
    assert fault["pointer"] == "/model"
    assert "NonMaxSuppression" in fault["message"]


@pytest.mark.parametrize(
    ("model", "dataset", "options", "wrong"),
    [
        ({}, {"image_shape": [1, 12, 12]}, {}, {"/datasets/0/preprocess/size"}),
        ({}, {"classes": ["a"]}, {}, {"/datasets/0/preprocess/class_order"}),
        ({}, {"image_shape": [3, 8, 8]}, {"channels": "RGB"}, {"/datasets/0/preprocess/channels"}),
        ({}, {}, {"layout": "NHWC"}, {"/datasets/0/preprocess/layout"}),
        ({"inputs": [{"name": "x", "shape": ["n", 1, "h", "w"]}]}, {"image_shape": [1, 12, 12]}, {}, set()),
        ({"inputs": []}, {"classes": ["a"]}, {}, {"/model"}),
        ({"inputs": "?"}, {}, {}, set()),
    ],
)
def test_a_dataset_that_does_not_fit_the_model(
    api: Api, model: dict[str, Any], dataset: dict[str, Any], options: dict[str, Any], wrong: set[str]
) -> None:
    model_id, dataset_id = api.model(ready=False), api.dataset(ready=False, preprocess=options)
    api.check(model_id, summary=MODEL_SUMMARY | model)
    api.check(dataset_id, summary=DATASET_SUMMARY | dataset)
    answer = api.submit(model=model_id, datasets=[dataset_id])
    if wrong:
        assert pointers(problem(answer, 422, "request_invalid")) == wrong
    else:
        assert answer.status_code == 202, answer.text


def test_the_device_chooses_the_queue() -> None:
    assert _queue("auto", ("cpu",)) == ("cpu", [])
    assert _queue("auto", ("cpu", "cuda:1")) == ("gpu", [])
    assert _queue("cuda:1", ("cpu", "cuda:1")) == ("gpu-1", [])
    assert _queue("cpu", ("cpu", "cuda:1")) == ("cpu", [])


def test_a_precision_that_the_cpu_has_not_is_a_fault(api: Api) -> None:
    recipe = {"training": {"precision": "float16"}, "steps": [{"method": "train", "epochs": 1}]}
    answer = api.http.post("/v1/recipes/check", json={"recipe": recipe, "device": "cpu"})
    assert pointers(problem(answer, 422, "recipe_invalid")) == {"/recipe/training/precision"}


@pytest.mark.parametrize(
    ("device", "there"),
    [("cpu", ("cuda:0",)), ("cuda:0", ("cpu",)), ("cuda:99", ("cpu", "cuda:0")), ("cuda:00", ("cpu", "cuda:0"))],
)
def test_a_device_without_a_worker_is_refused(device: str, there: tuple[str, ...]) -> None:
    queue, (fault,) = _queue(device, there)
    assert (queue, fault.pointer) == (None, "/device")
    assert fault.message == f"this installation has no worker for {device}"
    assert fault.expected == ", ".join(("auto", *there))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "line 1"), (b"{", "line 1"), (b'{"model": NaN}', "NaN"), (b'{"model": 1e999}', "too large"),
        (b'{"model": "\\u0000"}', "U+0000"), (b'{"model": "\\ud800"}', "UTF-8"), (b'"\xff"', "UTF-8"),
        (b"[" * 10_000, "deep"),
    ],
)  # fmt: skip
def test_json_that_is_none(api: Api, body: bytes, says: str) -> None:
    answer = api.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert says in problem(answer, 400, "json_invalid")["faults"][0]["message"]


def test_a_name_that_is_there_twice(api: Api) -> None:
    body = b'{"model": "x", "model": "y", "recipe": {"steps": [{"a/b": 1, "a/b": 1}], "seed": 1}, "datasets": []}'
    answer = api.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    document = problem(answer, 400, "json_invalid")
    assert pointers(document) == {"/model", "/recipe/steps/0/a~1b"}
    options = {"filename": "d.zip", "preprocess": '{"scale": 1, "scale": 2}'}
    answer = api.http.post("/v1/datasets", content=b"x", params=options)
    assert pointers(problem(answer, 422, "request_invalid")) == {"/preprocess/scale"}


def test_a_body_that_is_not_json(api: Api) -> None:
    problem(api.http.post("/v1/jobs", content=b"{}"), 415, "media_type_unsupported")
    problem(api.http.post("/v1/jobs", data={"model": "x"}), 415, "media_type_unsupported")
