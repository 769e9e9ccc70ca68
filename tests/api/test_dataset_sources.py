"""`POST /v1/datasets` with a URI: what is taken, what is known already, and every fault at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from store.settings import Settings
from tests.api.conftest import Api, nothing_is_left, pointers, problem

SHA256 = "ab" * 32


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "dataset_hosts": ("data.example.com", "other.example.com:8443"), "dataset_buckets": ("sets",),
            "dataset_roots": (Path("/srv/sets"),),
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("uri", "filename", "format"),
    [
        ("https://data.example.com/a/images.zip", "images.zip", "image_folder"),
        ("https://DATA.example.com:443/a/images.ZIP?version=3", "images.ZIP", "image_folder"),
        ("https://other.example.com:8443/d.npz", "d.npz", "npz"),
        ("s3://sets/a/train%201.parquet", "train 1.parquet", "parquet"),
        ("file:///srv/sets/d.npz", "d.npz", "npz"),
        ("file://localhost/srv/sets/photos/", "photos", "image_folder"),
        ("file:///srv/sets/photos", "photos", "image_folder"),
    ],
)
def test_where_datasets_may_lie(api: Api, uri: str, filename: str, format: str) -> None:
    answer = api.http.post("/v1/datasets", json={"uri": uri})
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert (dataset["uri"], dataset["filename"], dataset["format"]) == (uri, filename, format)
    assert (dataset["state"], dataset["sha256"], dataset["pinned_sha256"], dataset["bytes"]) == (
        "checking",
        None,
        None,
        0,
    )
    assert dataset["options"]["format"] == format
    assert api.http.get(f"/v1/datasets/{dataset['id']}").json() == dataset
    again = api.http.post("/v1/datasets", json={"uri": uri})
    assert (again.status_code, again.json()["id"] == dataset["id"]) == (201, False), "what is there may have changed"


def test_one_that_is_pinned_is_known(api: Api) -> None:
    body = {"uri": "https://data.example.com/images.zip", "sha256": SHA256.upper(), "splits": {"seed": 1}}
    first = api.http.post("/v1/datasets", json=body)
    assert (first.status_code, first.json()["pinned_sha256"]) == (201, SHA256)
    again = api.http.post("/v1/datasets", json=body | {"sha256": SHA256})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    for other in ({"splits": {"seed": 2}}, {"sha256": "cd" * 32}, {"format": "parquet"}):
        assert api.http.post("/v1/datasets", json=body | other).status_code == 201
    assert api.other.post("/v1/datasets", json=body).json()["id"] != first.json()["id"]


def test_a_job_waits_until_it_is_there(api: Api) -> None:
    dataset = api.http.post("/v1/datasets", json={"uri": "s3://sets/images.zip"}).json()["id"]
    problem(api.submit(datasets=[dataset]), 409, "input_not_ready")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("http://data.example.com/images.zip", "http:// can be read"),
        ("ftp://data.example.com/images.zip", "'ftp:' is not taken"),
        ("images.zip", "'no scheme' is not taken"),
        ("data:application/zip;base64,AAAA", "'data:' is not taken"),
        ("https://data.example.com.evil.com/images.zip", "data.example.com.evil.com' is not among"),
        ("https://data.example.com:8443/images.zip", "data.example.com:8443' is not among"),
        ("https://other.example.com/images.zip", "other.example.com' is not among"),
        ("https://127.0.0.1/images.zip", "127.0.0.1' is not among"),
        ("https://ann:secret@data.example.com/images.zip", "a user or password"),
        ("https://data.example.com/a.zip?X-Amz-Signature=abc&X-Amz-Credential=x", "X-Amz-Credential, X-Amz-Signature"),
        ("https://data.example.com/images.zip?access_token=abc", "access_token"),
        ("https://data.example.com/images.zip#part", "a fragment"),
        ("https://data.example.com\\@evil.com/images.zip", "backslashes"),
        ("https://data.example.com/images.zip\n", "control characters"),
        ("https://data.example.com/im ages.zip", "spaces"),
        ("https:///images.zip", "no name of a host"),
        ("https://dätä.example.com/images.zip", "no name of a host"),
        ("https://data.example.com:99999/images.zip", "no URI"),
        ("https://[::1/images.zip", "no URI"),
        ("s3://others/images.zip", "the bucket 'others' is not among"),
        ("s3://sets/a/../images.zip", "no key"),
        ("s3://sets/", "no key"),
        ("s3://Sets!/images.zip", "no name of a bucket"),
        ("file:///etc/passwd.zip", "the folder '/etc/passwd.zip' is not among"),
        ("file:///srv/sets/../../etc/x.zip", ".."),
        ("file:///srv/sets/%2e%2e/x.zip", ".."),
        ("file:///srv/sets", "is not among"),
        ("file:///srv/setsx/a.zip", "is not among"),
        ("file://server/share/a.zip", "of a host"),
        ("file:relative.zip", "no absolute path"),
        ("builtin:faces", "no built-in dataset 'faces'"),
        ("", ""),
        ("https://data.example.com/" + "x" * 2100 + ".zip", ""),
    ],
)  # fmt: skip
def test_where_they_may_not(api: Api, uri: str, says: str) -> None:
    body = {"uri": uri, "format": "digits" if "builtin" in uri else None}
    document = problem(api.http.post("/v1/datasets", json=body), 422, "request_invalid")
    assert pointers(document) == {"/uri"}
    assert says in document["faults"][0]["message"]
    assert "secret" not in json.dumps(document)
    assert "=abc" not in json.dumps(document)
    assert nothing_is_left(api)


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"uri": "https://data.example.com/download"}, {"/format"}),
        ({"uri": "https://data.example.com/images.tar"}, {"/format"}),
        ({"uri": "file:///srv/sets/images.tar.gz"}, {"/format"}),
        ({"uri": "https://data.example.com/images.zip", "format": "npz"}, {"/format"}),
        ({"uri": "https://data.example.com/images.zip", "format": "digits"}, {"/format"}),
        ({"uri": "https://data.example.com/images.zip", "format": "tar"}, {"/format"}),
        ({"uri": "https://data.example.com/images.zip", "sha256": "abc"}, {"/sha256"}),
        ({"uri": "https://data.example.com/a.npz", "columns": {"label": "y"}}, {"/format"}),
        ({"uri": "https://data.example.com/a.zip", "format": "image_folder", "columns": {"label": "y"}}, {"/columns"}),
        ({"uri": "https://data.example.com/a.parquet", "columns": {"colour": "y", "label": ""}},
         {"/columns/colour", "/columns/label"}),
        ({"uri": "http://evil.com/a.zip", "sha256": "x", "splits": {"seed": -1}, "size": 1},
         {"/uri", "/sha256", "/splits/seed", "/size"}),
        ({"uri": "https://evil.com/a.tar", "columns": {}}, {"/uri", "/format"}),
        ({"uri": "builtin:digits", "sha256": SHA256, "format": "npz"}, {"/sha256", "/format"}),
        ({"uri": "builtin:digits", "columns": {"label": "y"}}, {"/columns"}),
        ({"uri": 3}, {"/uri"}),
        ({"sha256": SHA256}, {"/uri"}),
    ],
)  # fmt: skip
def test_all_faults_at_once(api: Api, body: dict[str, Any], wrong: set[str]) -> None:
    document = problem(api.http.post("/v1/datasets", json=body), 422, "request_invalid")
    assert pointers(document) == wrong, document
    assert nothing_is_left(api)


def test_a_name_that_says_no_format_is_told_the_formats(api: Api) -> None:
    body = {"uri": "https://data.example.com/download"}
    (fault,) = problem(api.http.post("/v1/datasets", json=body), 422, "request_invalid")["faults"]
    assert fault["expected"] == "a name ending in .zip, .npz, .parquet, or format: image_folder, npz or parquet"
    assert api.http.post("/v1/datasets", json=body | {"format": "npz"}).json()["format"] == "npz"


def test_what_is_no_sha256_is_told_what_one_is(api: Api) -> None:
    body = {"uri": "https://data.example.com/a.zip", "sha256": "zz"}
    (fault,) = problem(api.http.post("/v1/datasets", json=body), 422, "request_invalid")["faults"]
    assert fault["expected"].startswith("64 hex digits")


def test_columns_mean_parquet(api: Api) -> None:
    body = {"uri": "https://data.example.com/a.zip", "columns": {"label": "coarse"}}
    dataset = api.http.post("/v1/datasets", json=body).json()
    assert (dataset["format"], dataset["options"]["columns"]["label"]) == ("parquet", "coarse")


# --- uploads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "fields", "format"),
    [
        ("d.parquet", {}, "parquet"),
        ("d.zip", {"format": "parquet"}, "parquet"),
        ("d.zip", {"columns": '{"label": "coarse"}'}, "parquet"),
        ("d.zip", {"columns": "{}"}, "image_folder"),
    ],
)
def test_parquet_is_a_format_of_uploads(api: Api, filename: str, fields: dict[str, str], format: str) -> None:
    answer = api.http.post("/v1/datasets", content=b"PAR1", params={"filename": filename, **fields})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["format"], answer.json()["options"]["format"]) == (format, format)


@pytest.mark.parametrize(
    ("filename", "fields", "wrong"),
    [
        ("d.parquet", {"format": "npz"}, {"/format"}),
        ("d.parquet", {"format": "image_folder"}, {"/format"}),
        ("d.npz", {"columns": '{"label": "y"}'}, {"/columns"}),
        ("d.zip", {"columns": '{"label": "y"}', "format": "image_folder"}, {"/columns"}),
        ("d.parquet", {"columns": '{"label": 3}', "sha256": SHA256}, {"/columns/label", "/sha256"}),
    ],
)
def test_options_that_do_not_fit_an_upload(api: Api, filename: str, fields: dict[str, str], wrong: set[str]) -> None:
    answer = api.http.post("/v1/datasets", content=b"x", params={"filename": filename, **fields})
    assert pointers(problem(answer, 422, "request_invalid")) == wrong
    assert nothing_is_left(api)
