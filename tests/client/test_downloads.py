"""Downloads: resumed, verified, moved into place in one go."""

from __future__ import annotations

from pathlib import Path

import pytest

import billhook
from tests.client.either import Either
from tests.client.fake_server import PRUNED, FakeServer

MODELS, DATASETS, JOBS = "POST /v1/models", "POST /v1/datasets", "POST /v1/jobs"


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "model.onnx")


def test_a_download_is_verified(client: Either, finished: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    file = client.download_artifact(
        finished, "pruned.onnx", tmp_path / "out.onnx", on_bytes=lambda done, total: seen.append((done, total))
    )
    assert file.path.read_bytes() == PRUNED
    assert (file.bytes, len(file.sha256)) == (len(PRUNED), 64)
    assert seen[-1] == (len(PRUNED), len(PRUNED))
    assert client.download_artifact(finished, output=tmp_path).path == tmp_path / "pruned.onnx"
    assert left_over(tmp_path) == ["out.onnx", "pruned.onnx"]


def test_weights_in_a_second_file_come_too(client: Either, fake: FakeServer, finished: str, tmp_path: Path) -> None:
    fake.two_files = True
    file = client.download_artifact(finished, "pruned.onnx", tmp_path / "out.onnx")
    assert [each.path.name for each in file.beside] == ["pruned.onnx.data"]  # as the model calls it
    assert left_over(tmp_path) == ["out.onnx", "pruned.onnx.data"]
    fetched = [request for request in fake.log if "/artifacts/" in request]
    assert [request.rpartition("/")[2] for request in fetched] == ["pruned.onnx.data", "pruned.onnx"]
    # another file of the job brings nothing with it
    assert client.download_artifact(finished, "pruned.onnx.data", tmp_path / "weights").beside == ()


def test_a_broken_download_goes_on_where_it_broke(
    client: Either, fake: FakeServer, finished: str, tmp_path: Path
) -> None:
    fake.break_download_after = [300_000, 200_000, 0]
    file = client.download_artifact(finished, "pruned.onnx", tmp_path / "out.onnx")
    assert file.path.read_bytes() == PRUNED
    ranges = [headers.get("Range") for request, headers in zip(fake.log, fake.headers, strict=True)
              if request.endswith("/artifacts/pruned.onnx")]  # fmt: skip
    starts = [int(value.removeprefix("bytes=").rstrip("-")) for value in ranges[1:] if value]
    assert ranges[0] is None
    assert len(starts) == 3
    assert 0 < starts[0] <= 300_000
    assert starts[0] < starts[1] <= 500_000
    assert starts[2] == starts[1]


def test_a_file_that_changed_in_between_is_taken_from_the_start(
    client: Either, fake: FakeServer, finished: str, tmp_path: Path
) -> None:
    """The server answers a Range whose If-Range does not match with the whole."""
    right, fake.etag = fake.etag, '"' + "0" * 64 + '"'
    fake.break_download_after = [300_000]

    def change() -> None:
        fake.etag = right

    fake.on_range = change
    assert client.download_artifact(finished, output=tmp_path / "out.onnx").path.read_bytes() == PRUNED


@pytest.mark.parametrize("etag", ['"' + "0" * 64 + '"', 'W/"' + "0" * 64 + '"', None])
def test_a_wrong_checksum_leaves_the_target_as_it_was(
    client: Either, fake: FakeServer, finished: str, tmp_path: Path, etag: str | None
) -> None:
    (tmp_path / "out.onnx").write_bytes(b"what was there")
    fake.etag = etag
    with pytest.raises(billhook.ChecksumMismatch):
        client.download_artifact(finished, output=tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == b"what was there"
    assert left_over(tmp_path) == ["out.onnx"]


def test_what_cannot_be_downloaded(client: Either, finished: str, tmp_path: Path) -> None:
    with pytest.raises(billhook.ApiError) as caught:
        client.download_artifact(finished, "nothing.onnx", tmp_path / "out.onnx")
    assert caught.value.status == 404
    with pytest.raises(billhook.InputInvalid, match="cannot be written"):
        client.download_artifact(finished, output=tmp_path / "no" / "folder.onnx")
    assert left_over(tmp_path) == []
