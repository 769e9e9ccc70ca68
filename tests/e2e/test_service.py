"""The main job, end to end, on the real server with the embedded default: real model, real data, over HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from core.data.datasets import load_dataset
from core.graph.architectures.small_cnn import SmallCNN
from core.job import DatasetInput
from tests.core.graph.exported import saved

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "examples" / "digits_resnet20.onnx"
RECIPE: dict[str, Any] = {
    "version": 1,
    "training": {"batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.02}},
    "steps": [{"method": "filter_norm", "signal": "activations", "ratio_per_round": 0.5, "every_epochs": 1,
               "target": {"params": 0.5, "macs": 0.5}, "fine_tune": {"epochs": 2}}],
}  # fmt: skip
MAX_UPLOAD = 8_000_000


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of a running server, which is stopped afterwards."""
    data = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "api.serve", "--data-dir", str(data), "--port", "0"]
    environment = os.environ | {"BILLHOOK_MAX_UPLOAD_BYTES": str(MAX_UPLOAD)}
    with (data / "out.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 60
        while not (data / "address").exists():
            assert server.poll() is None, (data / "out.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        yield data
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            pytest.fail("the server did not stop within 30 s of SIGTERM")
    assert server.returncode == 0


@pytest.fixture(scope="module")
def http(data_dir: Path) -> Iterator[httpx.Client]:
    key = (data_dir / "key").read_text().strip()
    address = (data_dir / "address").read_text().strip()
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=90) as client:
        yield client


def _prune(
    data_dir: Path, folder: Path, *more: str, model: Path = MODEL, recipe: dict[str, Any] = RECIPE
) -> subprocess.CompletedProcess[str]:
    (folder / "recipe.json").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "billhook", "prune", str(model), "--data", "builtin:digits",
               "--recipe", str(folder / "recipe.json"), "--output", str(folder / "pruned.onnx"), *more]  # fmt: skip
    environment = os.environ | {"BILLHOOK_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT / "client")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_prune_by_the_command(data_dir: Path, http: httpx.Client, tmp_path: Path) -> None:
    result = _prune(data_dir, tmp_path, "--json", "--require", "params_ratio<=0.5")
    assert result.returncode == 0, result.stderr
    job_id = json.loads(result.stdout)["job"]["id"]

    before, after = onnx.load(MODEL), onnx.load(tmp_path / "pruned.onnx")
    onnx.checker.check_model(after, full_check=True)
    for old, new in [*zip(before.graph.input, after.graph.input, strict=True),
                     *zip(before.graph.output, after.graph.output, strict=True)]:  # fmt: skip
        assert old.name == new.name
        assert _shape(old) == _shape(new)
    assert before.opset_import[0].version == after.opset_import[0].version
    sizes = [sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer) for model in (before, after)]
    assert sizes[1] < 0.55 * sizes[0]

    report = http.get(f"/v1/jobs/{job_id}/report").json()
    assert report["target_met"]
    assert report["ratios"]["params_ratio"] <= 0.5
    assert report["ratios"]["macs_ratio"] <= 0.5
    # the accuracy in the report is that of the file, computed here anew
    data = load_dataset(DatasetInput(path=None, sha256=None, format="digits"))
    session = onnxruntime.InferenceSession(tmp_path / "pruned.onnx", providers=["CPUExecutionProvider"])
    images = data.preprocess(data.splits["test"].x).numpy()
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    accuracy = float((logits.argmax(1) == data.splits["test"].y.numpy()).mean())
    assert accuracy == pytest.approx(report["variants"]["pruned"]["test"]["accuracy"], abs=1e-9)

    artifact = http.get(f"/v1/jobs/{job_id}/artifacts/pruned.onnx")
    assert artifact.headers["etag"].strip('"') == hashlib.sha256(artifact.content).hexdigest()
    assert artifact.content == (tmp_path / "pruned.onnx").read_bytes()
    assert "|" in http.get(f"/v1/jobs/{job_id}/report", headers={"Accept": "text/markdown"}).text


def test_what_a_model_is_made_of(data_dir: Path, http: httpx.Client) -> None:
    answer = http.post("/v1/models", params={"filename": MODEL.name, "wait": "60"}, content=MODEL.read_bytes())
    model = answer.json()
    assert model["state"] == "ready", answer.text
    graph = http.get(f"/v1/models/{model['id']}/graph")
    assert graph.headers["etag"].strip('"') == hashlib.sha256(graph.content).hexdigest()
    assert graph.json()["totals"] == model["summary"]["graph"]
    assert graph.json()["totals"]["residual_blocks"] == 9
    environment = os.environ | {"BILLHOOK_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT / "client")}
    command = [sys.executable, "-m", "billhook", "models", "show", model["id"]]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^blocks\.8 +residual +64×2×2 +64×2×2 +73,984 .*identity +blocks\.7 +- +yes", shown.stdout, re.M)
    assert re.search(r"^output +\S+ +the channels of a model output stay +fc *$", shown.stdout, re.M)


def test_events_have_no_gaps_and_tell_everything(http: httpx.Client) -> None:
    job = http.get("/v1/jobs", params={"state": "succeeded"}).json()["items"][0]
    events: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = http.get(f"/v1/jobs/{job['id']}/events", params={"after": after, "limit": 7}).json()
        events += page["items"]
        after = page["next_after"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    names = [event["name"] for event in events]
    for stage in ("import", "baseline", "prune", "fine_tune", "export", "measure"):
        assert any(name.startswith(stage) for name in names), stage
    assert names[-1] == "state"
    assert events[-1]["body"]["state"] == "succeeded"


def test_requirements_missed_is_exit_code_3(data_dir: Path, tmp_path: Path) -> None:
    result = _prune(data_dir, tmp_path, "--require", "params_ratio<=0.01")
    assert result.returncode == 3, result.stderr
    assert (tmp_path / "pruned.onnx").exists()


# --- bad input -------------------------------------------------------------------------------------------------------


def _refusal(http: httpx.Client, route: str, name: str, content: bytes, **params: str) -> dict[str, Any]:
    answer = http.post(f"/v1/{route}", params={"filename": name, "wait": "30", **params}, content=content)
    assert answer.status_code == 201, answer.text
    assert answer.json()["state"] == "refused", answer.json()
    refusal: dict[str, Any] = answer.json()["refusal"]
    assert str(ROOT) not in json.dumps(refusal)
    assert "Traceback" not in json.dumps(refusal)
    return refusal


def test_a_truncated_onnx(http: httpx.Client) -> None:
    assert _refusal(http, "models", "half.onnx", MODEL.read_bytes()[:300_000])["code"] == "model_unreadable"


def test_a_pickle_renamed_onnx(http: httpx.Client) -> None:
    refusal = _refusal(http, "models", "evil.onnx", pickle.dumps({"weights": [1.0]}))
    assert refusal["code"] == "model_unreadable"
    assert "pickle" in refusal["message"]


def test_an_unknown_operator(http: httpx.Client) -> None:
    node = helper.make_node("NonMaxSuppression", ["x", "s"], ["y"], name="nms_7")
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5, 4]),
         helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 1, 5])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    refusal = _refusal(http, "models", "nms.onnx", model.SerializeToString())
    assert refusal["code"] == "operator_unknown"
    assert "NonMaxSuppression" in refusal["message"]
    assert "nms_7" in refusal["message"]


def _in_two(folder: Path) -> tuple[bytes, bytes]:
    """The example's network without its larger weights, and those."""
    (folder / "two").mkdir()
    onnx.save_model(onnx.load(MODEL), folder / "two" / "net.onnx", save_as_external_data=True, location="net.data")
    return (folder / "two" / "net.onnx").read_bytes(), (folder / "two" / "net.data").read_bytes()


def _zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "../").replace("_", "."), content)
    return buffer.getvalue()


def test_weights_beside_the_model_in_and_out(data_dir: Path, tmp_path: Path) -> None:
    graph, weights = _in_two(tmp_path)
    (tmp_path / "net.zip").write_bytes(_zip(net_onnx=graph, net_data=weights))
    step = {**RECIPE["steps"][0], "fine_tune": {"epochs": 0}}
    recipe = {**RECIPE, "steps": [step], "export": {"external_data_bytes": 1024, "opset": 13}}
    result = _prune(data_dir, tmp_path, "--json", model=tmp_path / "net.zip", recipe=recipe)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["beside"] == [str(tmp_path / "pruned.onnx.data")]
    onnx.checker.check_model(str(tmp_path / "pruned.onnx"), full_check=True)
    assert onnx.load(tmp_path / "pruned.onnx").opset_import[0].version == 13
    session = onnxruntime.InferenceSession(tmp_path / "pruned.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {session.get_inputs()[0].name: np.zeros((1, 1, 8, 8), np.float32)})[0].shape == (1, 10)


@pytest.mark.parametrize(("asked", "opset"), [({}, 20), ({"opset": 13}, 13)], ids=["as it is", "another opset"])
def test_a_pt2_becomes_onnx(data_dir: Path, tmp_path: Path, asked: dict[str, int], opset: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        saved(SmallCNN(in_channels=1).eval(), tmp_path / "net.pt2", torch.randn(2, 1, 8, 8))
    environment = os.environ | {"BILLHOOK_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT / "client")}
    command = [sys.executable, "-m", "billhook", "models", "add", "net.pt2", "--json"]
    added = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert added.returncode == 0, added.stderr
    model = json.loads(added.stdout)
    assert (model["format"], model["state"], model["summary"]["opset"]) == ("pt2", "ready", 20)
    step = {**RECIPE["steps"][0], "fine_tune": {"epochs": 0}}
    recipe = {**RECIPE, "steps": [step], "export": asked, "allow_near_chance": True}  # nothing was trained
    result = _prune(data_dir, tmp_path, "--json", model=tmp_path / "net.pt2", recipe=recipe)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["job"]["model"] == model["id"], "the file that the server has is not sent again"
    pruned = onnx.load(tmp_path / "pruned.onnx")
    onnx.checker.check_model(pruned, full_check=True)
    assert pruned.opset_import[0].version == opset
    assert [(item.name, _shape(item)) for item in pruned.graph.input] == [("x", ["batch", 1, 8, 8])]
    assert [(item.name, _shape(item)) for item in pruned.graph.output] == [("output", ["batch", 10])]
    session = onnxruntime.InferenceSession(tmp_path / "pruned.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((3, 1, 8, 8), np.float32)})[0].shape == (3, 10)


def test_wrong_zips_and_models_that_ask_for_too_much(http: httpx.Client, tmp_path: Path) -> None:
    graph, weights = _in_two(tmp_path)
    outside = onnx.load_model_from_string(graph)
    tensor = next(tensor for tensor in outside.graph.initializer if tensor.external_data)
    tensor.external_data[0].value = "../../../etc/passwd"
    huge = onnx.load(MODEL)
    huge.graph.initializer[0].dims[:] = [2**20, 2**20]
    for name, content, code, told in (
        ("alone.onnx", graph, "model_refused", "keeps its data in another file"),
        ("missing.zip", _zip(net_onnx=graph), "model_refused", "which is not in the zip"),
        ("climbing.zip", _zip(net_onnx=graph, net_data=weights, __evil=b"1"), "model_unreadable", "are not taken"),
        ("outside.zip", _zip(net_onnx=outside.SerializeToString(), net_data=weights), "model_refused", "etc/passwd"),
        ("unnamed.zip", _zip(net_onnx=graph, net_data=weights, more=b"1"), "model_refused", "'more' is not named"),
        ("huge.onnx", huge.SerializeToString(), "model_too_large", "1099511627776 elements"),
    ):
        refusal = _refusal(http, "models", name, content)
        assert (refusal["code"], told in refusal["message"]) == (code, True), (name, refusal)


def _folder(classes: int, size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for label in range(classes):
            for number in range(20):
                picture = io.BytesIO()
                pixels = np.random.default_rng(1000 * label + number).integers(0, 255, (size, size), dtype=np.uint8)
                Image.fromarray(pixels).save(picture, "PNG")
                archive.writestr(f"class{label}/{number}.png", picture.getvalue())
    return buffer.getvalue()


def test_a_dataset_of_one_folder_has_no_labels(http: httpx.Client) -> None:
    answer = http.post("/v1/datasets", params={"filename": "one.zip", "wait": "30"}, content=_folder(classes=1, size=8))
    dataset = answer.json()
    assert (dataset["state"], dataset["summary"]["classes"]) == ("ready", [])
    step = {"method": "filter_norm", "target": {"macs": 0.5}}
    job = {"model": _ready_model(http), "datasets": [dataset["id"]], "recipe": {"steps": [step]}}
    refused = http.post("/v1/jobs", json=job)
    assert refused.status_code == 422
    (fault,) = refused.json()["faults"]
    assert (fault["pointer"], fault["message"]) == ("/datasets/0", "the dataset has no labels")


def _ready_model(http: httpx.Client) -> str:
    answer = http.post("/v1/models", params={"filename": MODEL.name, "wait": "30"}, content=MODEL.read_bytes())
    assert answer.json()["state"] == "ready", answer.json()
    return str(answer.json()["id"])


def test_images_of_the_wrong_size(http: httpx.Client) -> None:
    model = _ready_model(http)
    answer = http.post(
        "/v1/datasets", params={"filename": "big.zip", "wait": "30"}, content=_folder(classes=10, size=12)
    )
    assert answer.json()["state"] == "ready", answer.json()
    job = {"model": model, "datasets": [answer.json()["id"]], "recipe": RECIPE}
    refused = http.post("/v1/jobs", json=job)
    assert refused.status_code == 422, refused.text
    assert refused.headers["content-type"] == "application/problem+json"
    assert any(fault["pointer"].endswith("/preprocess/size") for fault in refused.json()["faults"])


def test_a_recipe_with_five_faults(http: httpx.Client) -> None:
    recipe = {
        "version": 2,
        "training": {"optimizer": {"name": "sgd", "lr": -1}},
        "steps": [{"method": "filter_norm", "ratio_per_round": 2, "target": {"params": 1.5}, "colour": "red"}],
    }
    answer = http.post("/v1/jobs", json={"model": "mdl_nothing", "datasets": ["ds_nothing"], "recipe": recipe})
    assert answer.status_code == 422
    pointers = {fault["pointer"] for fault in answer.json()["faults"]}
    assert {
        "/recipe/version", "/recipe/training/optimizer/lr", "/recipe/steps/0/ratio_per_round",
        "/recipe/steps/0/target/params", "/recipe/steps/0/colour",
    } <= pointers  # fmt: skip
    assert {"/model", "/datasets/0"} <= pointers


def test_an_unknown_id(http: httpx.Client) -> None:
    for route in ("models/mdl_x", "datasets/ds_x", "jobs/job_x", "jobs/job_x/report"):
        answer = http.get(f"/v1/{route}")
        assert answer.status_code == 404
        assert answer.json()["code"] == "not_found"


def test_a_body_over_the_limit_leaves_nothing(http: httpx.Client, data_dir: Path) -> None:
    before = len(http.get("/v1/models").json()["items"])
    answer = http.post("/v1/models", params={"filename": "big.onnx"}, content=b"0" * (MAX_UPLOAD + 1))
    assert answer.status_code == 413
    assert answer.json()["code"] == "body_too_large"
    assert len(http.get("/v1/models").json()["items"]) == before
    uploads = data_dir / "uploads"
    assert not uploads.exists() or not list(uploads.iterdir())
