"""The report and the files: strong ETags, conditional and partial requests."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from api.routes.artifacts import preferred
from tests.api.conftest import Api, problem

CONTENT = os.urandom(5_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REPORT = {"version": 1, "ratios": {"params": 0.5}}
FILES = {
    "pruned.onnx": ("application/octet-stream", CONTENT),
    "report.json": ("application/json", json.dumps(REPORT).encode()),
    "report.md": ("text/markdown; charset=utf-8", "| größer | kleiner |".encode()),
    "empty.txt": ("text/plain", b""),
}


@pytest.fixture
def job(api: Api, tmp_path: Path) -> str:
    """The address of a job that succeeded."""
    job_id = api.job()
    api.succeed(job_id, FILES, tmp_path)
    return f"/v1/jobs/{job_id}"


def test_the_files_are_listed(api: Api, job: str) -> None:
    items = api.http.get(f"{job}/artifacts").json()["items"]
    assert [item["name"] for item in items] == sorted(FILES)
    for item in items:
        media_type, content = FILES[item["name"]]
        assert (item["sha256"], item["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
        assert (item["media_type"], item["kind"]) == (media_type, "output")
        answer = api.http.get(f"{job}/artifacts/{item['name']}")
        assert answer.content == content
        assert answer.headers["etag"] == f'"{item["sha256"]}"'
        assert answer.headers["content-length"] == str(len(content))
        assert answer.headers["content-type"].split(";")[0] == media_type.split(";")[0]
        assert item["name"] in answer.headers["content-disposition"]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "header", [f'"{SHA256}"', f'W/"{SHA256}"', f'"x", "{SHA256}"', "*"], ids=["strong", "weak", "one of several", "any"]
)  # the same in every process
def test_what_one_has_is_not_sent_again(api: Api, job: str, header: str) -> None:
    answer = api.http.get(f"{job}/artifacts/pruned.onnx", headers={"If-None-Match": header})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", f'"{SHA256}"')


def test_what_one_has_not_is_sent(api: Api, job: str) -> None:
    answer = api.http.get(f"{job}/artifacts/pruned.onnx", headers={"If-None-Match": '"0"'})
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=100-199", 100, 200), ("bytes=4000-", 4000, 5000), ("bytes=-10", 4990, 5000),
     ("bytes=4990-99999", 4990, 5000), ("bytes=-99999", 0, 5000), ("Bytes = 1 - 2", 1, 3)],
)  # fmt: skip
def test_a_part(api: Api, job: str, header: str, start: int, end: int) -> None:
    answer = api.http.get(f"{job}/artifacts/pruned.onnx", headers={"Range": header})
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/5000"
    assert answer.headers["content-length"] == str(end - start)
    assert answer.headers["etag"] == f'"{SHA256}"'


@pytest.mark.parametrize("header", ["bytes=5000-", "bytes=9000-9001", "bytes=-0"])
def test_a_part_that_is_not_there(api: Api, job: str, header: str) -> None:
    answer = api.http.get(f"{job}/artifacts/pruned.onnx", headers={"Range": header})
    problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == "bytes */5000"


@pytest.mark.parametrize(
    "header", ["bytes=9-3", "bytes=-", "lines=1-2", "x", "bytes=0-1,4-5", "bytes=" + "1-2," * 1000]
)
def test_a_range_that_is_none_is_ignored(api: Api, job: str, header: str) -> None:
    answer = api.http.get(f"{job}/artifacts/pruned.onnx", headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_a_download_is_resumed_only_if_the_file_is_the_same(api: Api, job: str) -> None:
    same = api.http.get(f"{job}/artifacts/pruned.onnx", headers={"Range": "bytes=10-", "If-Range": f'"{SHA256}"'})
    assert (same.status_code, same.content) == (206, CONTENT[10:])
    other = api.http.get(f"{job}/artifacts/pruned.onnx", headers={"Range": "bytes=10-", "If-Range": '"0"'})
    assert (other.status_code, other.content) == (200, CONTENT)


def test_head(api: Api, job: str) -> None:
    answer = api.http.head(f"{job}/artifacts/pruned.onnx")
    assert (answer.status_code, answer.content) == (200, b"")
    assert (answer.headers["content-length"], answer.headers["etag"]) == ("5000", f'"{SHA256}"')


@pytest.mark.parametrize("extra", [{}, {"Range": "bytes=0-9"}, {"Range": "bytes=9999-"}])
def test_a_head_knows_no_range(api: Api, job: str, extra: dict[str, str]) -> None:
    answer = api.http.head(f"{job}/artifacts/pruned.onnx", headers=extra)
    assert (answer.status_code, answer.headers["accept-ranges"]) == (200, "bytes")
    assert (answer.headers["content-length"], "content-range" in answer.headers) == ("5000", False)


def test_a_head_fetches_nothing(api: Api, job: str) -> None:
    api.services.artifacts.delete(SHA256)
    assert api.http.head(f"{job}/artifacts/pruned.onnx").status_code == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [(f'"{SHA256}"', 200), ("*", 200), (f'"x", "{SHA256}"', 200), ('"x"', 412), (f'W/"{SHA256}"', 412)],
    ids=["same", "any", "one of several", "another", "weak"],
)
def test_only_if_it_is_the_same(api: Api, job: str, header: str, status: int) -> None:
    answer = api.http.get(f"{job}/artifacts/pruned.onnx", headers={"If-Match": header})
    if status == 200:
        assert (answer.status_code, answer.content) == (200, CONTENT)
    else:
        problem(answer, 412, "precondition_failed")
        assert answer.headers["etag"] == f'"{SHA256}"'


@pytest.mark.parametrize(
    "header", [f'W/"{SHA256}"', "Sun, 22 Nov 2026 02:39:40 GMT", "x"], ids=["weak", "date", "neither"]
)
def test_a_validator_that_is_not_strong_gets_all_of_it(api: Api, job: str, header: str) -> None:
    answer = api.http.get(f"{job}/artifacts/pruned.onnx", headers={"Range": "bytes=10-", "If-Range": header})
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_what_one_has_is_told_before_a_range(api: Api, job: str) -> None:
    headers = {"If-None-Match": f'"{SHA256}"', "Range": "bytes=9999-"}
    answer = api.http.get(f"{job}/artifacts/pruned.onnx", headers=headers)
    assert (answer.status_code, answer.headers["cache-control"]) == (304, "private, no-cache")


def test_reports_graphs_and_sheets_too(api: Api, job: str, tmp_path: Path) -> None:
    """Conditional and partial requests are the same for all that is stored."""
    content = b'{"version": 1, "layers": []}'
    (tmp_path / "stored").write_bytes(content)
    stored = api.services.artifacts.put_file(tmp_path / "stored")
    model, dataset = api.model(b"with a graph", ready=False), api.dataset(ready=False, splits={"seed": 7})
    api.check(model, summary={}, graph=stored)
    api.check(dataset, summary={}, contact_sheet=stored)
    for path in (f"{job}/report", f"/v1/models/{model}/graph", f"/v1/datasets/{dataset}/contact-sheet"):
        whole = api.http.get(path)
        tag = whole.headers["etag"]
        assert (whole.status_code, whole.headers["accept-ranges"]) == (200, "bytes"), path
        assert api.http.get(path, headers={"If-None-Match": tag}).status_code == 304
        part = api.http.get(path, headers={"Range": "bytes=-5", "If-Range": tag})
        assert (part.status_code, part.content) == (206, whole.content[-5:])
        assert api.http.get(path, headers={"Range": "bytes=-5", "If-Range": '"x"'}).content == whole.content
        problem(api.http.get(path, headers={"Range": "bytes=9999-"}), 416, "range_not_satisfiable")
        head = api.http.head(path)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(whole.content)))
        assert head.headers["etag"] == tag
        assert head.headers.get("vary") == whole.headers.get("vary")


def test_a_part_of_an_empty_file(api: Api, job: str) -> None:
    problem(api.http.get(f"{job}/artifacts/empty.txt", headers={"Range": "bytes=0-"}), 416, "range_not_satisfiable")


def test_the_report_as_one_likes_it(api: Api, job: str) -> None:
    answer = api.http.get(f"{job}/report")
    assert (answer.status_code, answer.json()) == (200, REPORT)
    assert answer.headers["vary"] == "Accept"
    assert api.http.get(f"{job}/report", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    answer = api.http.get(f"{job}/report", headers={"Accept": "text/markdown"})
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.text == "| größer | kleiner |"
    problem(api.http.get(f"{job}/report", headers={"Accept": "text/html"}), 406, "not_acceptable")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [("*/*", "a/json"), ("text/md", "text/md"), ("text/*", "text/md"), ("a/json;q=0.5, text/md", "text/md"),
     ("text/md;q=0.1, */*;q=0.9", "a/json"), ("a/json;q=0", None), ("*/*, a/json;q=0", "text/md"), ("", None),
     ("image/png", None), ("text/md;q=x", None), ("TEXT/MD", "text/md")],
)  # fmt: skip
def test_accept(accept: str, chosen: str | None) -> None:
    assert preferred(accept, ("a/json", "text/md")) == chosen


def test_what_is_not_there(api: Api, job: str) -> None:
    queued = f"/v1/jobs/{api.job()}"
    problem(api.http.get(f"{queued}/report"), 409, "job_not_succeeded")
    assert api.http.get(f"{queued}/artifacts").json()["items"] == []
    for name in ("nothing", "..%2fkey", "..%5ckey", "%00"):
        problem(api.http.get(f"{job}/artifacts/{name}"), 404, "not_found")
    for path in ("report", "artifacts", "artifacts/pruned.onnx"):
        problem(api.other.get(f"{job}/{path}"), 404, "not_found")


def test_a_file_that_the_storage_lost(api: Api, job: str) -> None:
    api.services.artifacts.delete(SHA256)
    problem(api.http.get(f"{job}/artifacts/pruned.onnx"), 500, "artifact_missing")
