"""Fetching from https servers: whole, broken off and gone on with, and everything that is refused."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from store.settings import Settings
from tests.worker.conftest import Fetch, record
from tests.worker.source_server import CONTENT, SHA256, Served, Server
from worker.sources import Fetched, fetch, transfer
from worker.sources.errors import (
    ChecksumMismatch,
    SourceError,
    SourceNotFound,
    SourceRefused,
    SourceTooLarge,
    SourceUnavailable,
    Stopped,
    StorageFull,
)

# --- what is fetched -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sha256", [None, SHA256], ids=["unpinned", "pinned"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_file(server: Server, get: Fetch, tmp_path: Path, sha256: str | None, chunked: bool) -> None:
    server.files["/images.zip"].chunked = chunked
    assert get(sha256=sha256) == Fetched(SHA256, len(CONTENT), "images.zip")
    assert (tmp_path / "got").read_bytes() == CONTENT
    ((method, path, headers),) = server.asked
    assert (method, path, headers["accept-encoding"]) == ("GET", "/images.zip", "identity")
    assert headers["host"] == server.url.removeprefix("https://")
    assert not {"authorization", "cookie", "range"} & set(headers)


def test_a_query_goes_with_it_and_a_name_is_decoded(server: Server, get: Fetch) -> None:
    server.files["/a%20b/%C3%BC.zip?version=3"] = Served(CONTENT)
    assert get("/a%20b/%C3%BC.zip?version=3").filename == "ü.zip"


@pytest.mark.parametrize("dated", [False, True], ids=["strong ETag", "Last-Modified"])
def test_what_breaks_off_is_gone_on_with_at_the_byte(server: Server, get: Fetch, tmp_path: Path, dated: bool) -> None:
    served = server.files["/images.zip"]
    served.breaks = [30_000, 0, 20_001]
    known = served.etag
    if dated:
        known = "Mon, 05 Oct 2026 10:00:00 GMT"
        served.etag, served.headers = None, {"Last-Modified": known}
    assert get().sha256 == SHA256
    assert (tmp_path / "got").read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=30000-", "bytes=30000-", "bytes=50001-"]
    assert [headers.get("if-range") for _, _, headers in server.asked] == [None, known, known, known]
    assert sum(server.sent) == len(CONTENT), "no byte twice"


def test_the_answer_to_a_range_need_not_name_the_version_again(server: Server, get: Fetch) -> None:
    served = server.files["/images.zip"]
    served.breaks, served.etag_in_ranges = [30_000, 20_000], False
    assert get().sha256 == SHA256
    assert server.ranges() == [None, "bytes=30000-", "bytes=50000-"]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_what_nothing_certain_is_known_of_is_fetched_anew(server: Server, get: Fetch, etag: str | None) -> None:
    served = server.files["/images.zip"]
    served.etag, served.breaks = etag, [30_000]
    assert get().sha256 == SHA256
    assert server.ranges() == [None, None]


def test_a_file_that_changes_meanwhile_is_fetched_anew(
    server: Server, get: Fetch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = server.files["/images.zip"]
    served.content, served.breaks = bytes(60_000), [30_000]
    wait = transfer.Rules.wait

    def change(rules: transfer.Rules, seconds: float) -> None:
        served.content, served.etag = CONTENT, '"two"'
        wait(rules, seconds)

    monkeypatch.setattr(transfer.Rules, "wait", change)
    assert get().sha256 == SHA256
    assert server.ranges() == [None, "bytes=30000-"]
    assert (tmp_path / "got").read_bytes() == CONTENT


def test_a_server_without_ranges(server: Server, get: Fetch) -> None:
    served = server.files["/images.zip"]
    served.ranges, served.breaks = False, [30_000, 99_999]
    assert get().sha256 == SHA256


@pytest.mark.parametrize(
    "said", ["bytes 1-99999/100000", "bytes 30000-99999/*", "30000-", "bytes 30000-99999/" + "9" * 30]
)
def test_another_part_than_was_asked_for(server: Server, get: Fetch, said: str) -> None:
    served = server.files["/images.zip"]
    served.breaks, served.headers = [30_000], {"Content-Range": said}
    assert get().sha256 == SHA256
    assert server.ranges() == [None, "bytes=30000-", None], "from the first byte again"


def test_a_server_that_is_busy_for_a_while(server: Server, get: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    served = server.files["/images.zip"]
    served.status = 503
    wait = transfer.Rules.wait

    def better(rules: transfer.Rules, seconds: float) -> None:
        served.status = 200 if len(server.asked) == 3 else 503
        wait(rules, seconds)

    monkeypatch.setattr(transfer.Rules, "wait", better)
    assert get().sha256 == SHA256
    assert len(server.asked) == 4


def test_a_file_of_unknown_length_is_taken_with_its_sha256_only(server: Server, get: Fetch) -> None:
    server.files["/images.zip"].length = False
    with pytest.raises(SourceRefused, match="how long"):
        get()
    assert get(sha256=SHA256).sha256 == SHA256


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_server_that_breaks_off_again_and_again(server: Server, get: Fetch) -> None:
    server.files["/images.zip"].breaks = [10] * 100
    with pytest.raises(SourceUnavailable, match="in 10 tries: it ended after 100 of 100000 bytes"):
        get()
    assert len(server.asked) == transfer.TRIES


def test_chunks_that_break_off(server: Server, get: Fetch) -> None:
    served = server.files["/images.zip"]
    served.chunked, served.breaks = True, [10] * 100
    with pytest.raises(SourceUnavailable, match="broke off"):
        get()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://127.0.0.1/secret?token=abc", "https://127.0.0.1/secret;"),
        ("https://user:pass@cdn.example.com/x.zip?Signature=abc", "https://cdn.example.com/x.zip;"),
        ("/other.zip", "/other.zip;"),
        ("http://169.254.169.254/latest", "http://169.254.169.254/latest;"),
        ("http://[", "what is no address;"),
    ],
)
def test_a_redirect_is_not_followed(server: Server, get: Fetch, status: int, location: str, told: str) -> None:
    server.files["/images.zip"] = Served(status=status, headers={"Location": location})
    with pytest.raises(SourceRefused) as caught:
        get()
    assert told in caught.value.message
    assert "abc" not in caught.value.message
    assert "pass" not in caught.value.message
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (404, SourceNotFound, "404 (Not Found)"),
        (410, SourceNotFound, "410"),
        (401, SourceRefused, "401 (Unauthorized)"),
        (403, SourceRefused, "403"),
        (204, SourceRefused, "204"),
        (206, SourceRefused, "206"),
        (500, SourceUnavailable, "in 10 tries: the server answers 500"),
    ],
)
def test_other_answers(server: Server, get: Fetch, status: int, kind: type[SourceError], says: str) -> None:
    server.files["/images.zip"] = Served(b"", status=status)
    with pytest.raises(kind) as caught:
        get()
    assert says in caught.value.message
    assert type(caught.value) is kind


def test_another_sha256_names_both(get: Fetch) -> None:
    with pytest.raises(ChecksumMismatch) as caught:
        get(sha256="0" * 64)
    assert SHA256 in caught.value.message
    assert "0" * 64 in caught.value.message
    (fault,) = caught.value.faults
    assert (fault.pointer, fault.expected) == ("/sha256", "0" * 64)


def test_too_large_by_its_length_is_not_begun(server: Server, get: Fetch, tmp_path: Path) -> None:
    with pytest.raises(SourceTooLarge, match=r"100000 bytes; at most 99999 .*BILLHOOK_MAX_UPLOAD_BYTES"):
        get(max_upload_bytes=99_999)
    assert (tmp_path / "got").stat().st_size == 0
    assert get(max_upload_bytes=100_000).bytes == 100_000


def test_too_large_without_saying_so_is_broken_off(server: Server, get: Fetch, tmp_path: Path) -> None:
    server.files["/images.zip"].chunked = True
    with pytest.raises(SourceTooLarge):
        get(max_upload_bytes=50_000)
    assert (tmp_path / "got").stat().st_size <= 50_000


def test_too_little_space(get: Fetch) -> None:
    with pytest.raises(StorageFull, match="BILLHOOK_MIN_FREE_BYTES"):
        get(min_free_bytes=2**62)


def test_an_empty_file(server: Server, get: Fetch) -> None:
    server.files["/images.zip"].content = b""
    with pytest.raises(SourceRefused, match="is empty"):
        get()


def test_a_packed_answer(server: Server, get: Fetch) -> None:
    server.files["/images.zip"].headers = {"Content-Encoding": "gzip"}
    with pytest.raises(SourceRefused, match="sent packed"):
        get()


def test_a_certificate_that_is_not_trusted(get: Fetch, server: Server) -> None:
    with pytest.raises(SourceRefused, match="certificate of localhost is not trusted"):
        get(dataset_ca_file=None)
    assert server.asked == []


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_authorities_that_cannot_be_read(get: Fetch, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "other.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SourceRefused, match="BILLHOOK_DATASET_CA_FILE"):
        get(dataset_ca_file=path)


def test_a_handshake_that_stalls_is_broken_off(allowing: Settings, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = f"localhost:{silent.getsockname()[1]}"
        settings = allowing.model_copy(update={"dataset_hosts": (host,), "upload_idle_seconds": 60})
        asked = time.monotonic()

        def order() -> str | None:
            return "stopped" if time.monotonic() > asked + 0.5 else None

        with pytest.raises(Stopped):
            fetch(settings, record(f"https://{host}/a.zip"), tmp_path / "got", order)  # type: ignore[arg-type]
        assert time.monotonic() - asked < 30, "not the minute that silence is waited for"


def test_a_certificate_for_another_name(server: Server, allowing: Settings, tmp_path: Path) -> None:
    uri = server.url.replace("localhost", "127.0.0.1")
    settings = allowing.model_copy(update={"dataset_hosts": (uri.removeprefix("https://"),)})
    with pytest.raises(SourceRefused, match=r"certificate of 127\.0\.0\.1 is not trusted"):
        fetch(settings, record(f"{uri}/images.zip"), tmp_path / "got", lambda: None)


def test_a_server_that_is_not_there(get: Fetch, server: Server, allowing: Settings, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"localhost:{free.getsockname()[1]}"
        settings = allowing.model_copy(update={"dataset_hosts": (host,)})
        with pytest.raises(SourceUnavailable, match="refuses connections"):
            fetch(settings, record(f"https://{host}/a.zip"), tmp_path / "got", lambda: None)


def test_a_server_that_stalls(server: Server, get: Fetch) -> None:
    server.files["/images.zip"].stalls_at = 0
    with pytest.raises(SourceUnavailable, match="did not answer in time"):
        get(upload_idle_seconds=0.1)


def test_a_server_that_trickles_is_given_up_in_time(server: Server, get: Fetch) -> None:
    server.files["/images.zip"].seconds_per_kib = 0.2
    started = time.monotonic()
    with pytest.raises(SourceUnavailable, match="BILLHOOK_FETCH_SECONDS_LIMIT"):
        get(fetch_seconds_limit=1)
    assert time.monotonic() - started < 15, "not the twenty seconds that it takes"


@pytest.mark.parametrize("order", ["lost", "stopped"])
def test_what_is_not_wanted_any_more_ends_in_the_middle_of_silence(server: Server, get: Fetch, order: str) -> None:
    server.files["/images.zip"].stalls_at = 20_480
    wanted = threading.Event()

    def ask() -> str | None:
        if server.sent and server.sent[0] >= 20_480:
            wanted.set()
        return order if wanted.is_set() else None

    with pytest.raises(Stopped) as caught:
        get(order=ask, upload_idle_seconds=60)
    assert caught.value.order == order
